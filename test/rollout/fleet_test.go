//go:build vm

package rollout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// patience is how long anything may take that normally takes seconds: emulated
// machines share two cores with each other and with compilers.
const patience = 3 * time.Minute

// fleet is a server on this host and machines that are enrolled at it.
type fleet struct {
	t        *testing.T
	lab      *lab.Lab
	kernel   *lab.Kernel
	service  *lab.Service
	machines []*machine
}

// machine has nothing in it but the kernel, a guest and our two programs.
type machine struct {
	*vm.VM
	name string
	// account is its account's name, plan that account's.
	account, plan string
	// id is the server's name of it.
	id string
}

// newFleet starts the server and the machines, and enrols these: four of community
// accounts, which have three seats each, and one of a paid plan, which is never a
// canary.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	ctx := t.Context()
	f := &fleet{t: t, machines: []*machine{
		{name: "north1", account: "north", plan: "community"},
		{name: "north2", account: "north", plan: "community"},
		{name: "south1", account: "south", plan: "community"},
		{name: "south2", account: "south", plan: "community"},
		{name: "paid1", account: "paid", plan: "standard"},
	}}
	var err error
	f.lab, err = lab.New(t.Logf)
	f.check(err)
	f.kernel, err = f.lab.Kernel(ctx, lab.Release)
	f.check(err)
	f.service, err = f.lab.NewService(ctx, filepath.Join(t.TempDir(), "server"))
	f.check(err)
	t.Cleanup(func() {
		f.service.Stop()
		if t.Failed() {
			t.Logf("server's log:\n%s", f.service.Log())
		}
	})
	initramfs, err := f.lab.Initramfs(ctx, f.kernel, f.files()...)
	f.check(err)
	dir := t.TempDir()
	f.each(func(m *machine) error { return m.boot(t, f, initramfs, dir) })
	f.enrol()
	return f
}

// files are what the machines' initramfs has beyond the lab's: the network card's
// driver, our programs and a name for this host.
func (f *fleet) files() []vm.File {
	f.t.Helper()
	files := []vm.File{
		{Path: "/etc/hosts", Mode: 0o644, Content: []byte("127.0.0.1 localhost\n" + vm.HostAddr + " " + lab.ServiceHost + "\n")},
		{Path: "/etc/livepatch", Mode: os.ModeDir | 0o755},
	}
	add := func(path, from string) {
		content, err := os.ReadFile(from)
		f.check(err)
		files = append(files, vm.File{Path: path, Mode: 0o755, Content: content})
	}
	for i, name := range []string{"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"} {
		add(fmt.Sprintf("%s/net%d-%s.ko", guest.ModuleDir, i, filepath.Base(name)), filepath.Join(f.kernel.Modules, "kernel", name+".ko"))
	}
	for _, name := range []string{"livepatch", "livepatchd"} {
		program, err := f.lab.GoBuild(f.t.Context(), "./cmd/"+name)
		f.check(err)
		add("/usr/bin/"+name, program)
	}
	return files
}

// boot starts the machine, with a network, and the daemon in it.
func (m *machine) boot(t *testing.T, f *fleet, initramfs, dir string) error {
	// It outlives the test's context, for its last words.
	ctx := context.WithoutCancel(t.Context())
	var err error
	m.VM, err = vm.Start(ctx, vm.Config{
		Name: m.name, Dir: dir, Accel: f.lab.Accel(ctx, f.kernel), CPUs: 1, Memory: 256,
		Kernel: f.kernel.Image, Initramfs: initramfs, Devices: []vm.Device{vm.UserNet{}},
		Boot: []vm.BootOption{vm.RebootOnPanic(time.Second), vm.KernelArg("quiet"), vm.KernelArg("net.ifnames=0")},
	})
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := m.sh(ctx, "cat /run/livepatchd.log") //nolint:errcheck // the console is there
			t.Logf("%s: daemon's log:\n%s\nconsole:\n%s", m.name, log, m.Console())
		}
		m.Stop()
	})
	authority, err := os.ReadFile(filepath.Join(f.service.Dir, "ca.crt"))
	if err != nil {
		return err
	}
	for path, content := range map[string]string{
		// 32 digits, another for each machine.
		"/etc/machine-id":               fmt.Sprintf("%032x\n", m.name),
		"/etc/livepatch/ca.crt":         string(authority),
		"/etc/livepatch/livepatch.yaml": "remote-server: " + f.service.URL + "\nca-certs: /etc/livepatch/ca.crt\nsoak-time: 5s\n",
	} {
		if err := m.Put(ctx, path, 0o644, bytes.NewReader([]byte(content))); err != nil {
			return err
		}
	}
	_, err = m.sh(ctx, "busybox hostname "+m.name+" && busybox ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up && "+
		"{ busybox setsid livepatchd >/run/livepatchd.log 2>&1 </dev/null & }")
	return err
}

// enrol takes the machines' seats, each with the command that its token comes with.
func (f *fleet) enrol() {
	f.t.Helper()
	ctx := f.t.Context()
	tokens := map[string]api.CreatedToken{}
	for _, m := range f.machines {
		if _, ok := tokens[m.account]; ok {
			continue
		}
		_, err := f.service.Admin(ctx, "account", "create", m.account, "--plan", m.plan)
		f.check(err)
		tokens[m.account], err = f.service.Token(ctx, m.account)
		f.check(err)
	}
	f.each(func(m *machine) error {
		return lab.Await(ctx, m.name+" to be enabled", patience, func() (string, bool, error) {
			out, err := m.sh(ctx, tokens[m.account].Enable)
			return out, err == nil, err
		})
	})
	var enrolled []api.Machine
	f.check(f.service.AdminJSON(ctx, &enrolled, "machine", "list"))
	for _, m := range f.machines {
		i := slices.IndexFunc(enrolled, func(e api.Machine) bool { return e.Hostname == m.name })
		if i < 0 {
			f.t.Fatalf("%s is not enrolled: %+v", m.name, enrolled)
		}
		m.id = enrolled[i].ID
	}
}

// in is f for a subtest.
func (f *fleet) in(t *testing.T) *fleet {
	sub := *f
	sub.t = t
	return &sub
}

func (f *fleet) check(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// each does something to all machines side by side.
func (f *fleet) each(do func(*machine) error) {
	f.t.Helper()
	f.eachOf(f.machines, do)
}

func (f *fleet) eachOf(machines []*machine, do func(*machine) error) {
	f.t.Helper()
	failures := make([]error, len(machines))
	var group sync.WaitGroup
	for i, m := range machines {
		group.Go(func() {
			if err := do(m); err != nil {
				failures[i] = fmt.Errorf("%s: %w", m.name, err)
			}
		})
	}
	group.Wait()
	f.check(errors.Join(failures...))
}

// sh runs a line of shell and returns what it says; it must end with code 0.
func (m *machine) sh(ctx context.Context, line string) (string, error) {
	exit, err := m.Run(ctx, guest.Run{Argv: []string{"/bin/sh", "-c", line}, Timeout: patience})
	if err != nil {
		return "", err
	}
	out := string(exit.Stdout) + string(exit.Stderr)
	if exit.Code != 0 || exit.TimedOut {
		return out, fmt.Errorf("%q ended with code %d:\n%s", line, exit.Code, out)
	}
	return out, nil
}

// has tells whether the kernel runs this livepatch now.
func (m *machine) has(ctx context.Context, module string) (bool, error) {
	out, err := m.sh(ctx, "ls /sys/kernel/livepatch")
	return slices.Contains(strings.Fields(out), module), err
}

// had tells whether the kernel was ever given this livepatch in this boot: it logs
// each (kernel/livepatch/core.c, "enabling patch").
func (m *machine) had(ctx context.Context, module string) (bool, error) {
	out, err := m.sh(ctx, "dmesg")
	return strings.Contains(out, "'"+module+"'"), err
}

// patched waits until the kernel runs this version of cmdline and no other livepatch,
// and then makes sure that everybody sees its effect.
func (m *machine) patched(ctx context.Context, p lab.Module) error {
	err := lab.Await(ctx, m.name+" to run "+p.Name+" alone", patience, func() (string, bool, error) {
		out, err := m.sh(ctx, "ls /sys/kernel/livepatch")
		return out, slices.Equal(strings.Fields(out), []string{p.Name}), err
	})
	if err != nil {
		return err
	}
	out, err := m.sh(ctx, "cat /sys/kernel/livepatch/"+p.Name+"/transition /proc/cmdline")
	if want := fmt.Sprintf("0\nthis has been live patched, version %d\n", p.Version); err == nil && out != want {
		err = fmt.Errorf("the transition and /proc/cmdline are %q, want %q", out, want)
	}
	return err
}

// publish compiles a module of test/modules and publishes it as the next version,
// to be rolled out under a policy.
func (f *fleet) publish(m lab.Module, policy rollout.Policy) {
	f.t.Helper()
	ctx := f.t.Context()
	text, err := policy.YAML()
	f.check(err)
	path := filepath.Join(f.t.TempDir(), policy.Name+".yaml")
	f.check(os.WriteFile(path, text, 0o600))
	_, err = f.service.Admin(ctx, "policy", "set", path)
	f.check(err)
	ko, err := f.lab.BuildModule(ctx, f.kernel, m)
	f.check(err)
	_, err = f.service.Publish(ctx, f.kernel, ko, "--policy", policy.Name)
	f.check(err)
}

// await waits until the rollout of a version is as it should be.
func (f *fleet) await(version, what string, is func(api.Rollout) bool) api.Rollout {
	f.t.Helper()
	var r api.Rollout
	start := time.Now()
	f.check(lab.Await(f.t.Context(), "the rollout to show that "+what, patience, func() (string, bool, error) {
		r = api.Rollout{}
		err := f.service.AdminJSON(f.t.Context(), &r, "rollout", "show", lab.Release, version)
		seen, _ := json.Marshal(r) //nolint:errcheck // came as JSON
		return string(seen), err == nil && is(r), err
	}))
	f.t.Logf("%s: %s after %.1f s", version, what, time.Since(start).Seconds())
	return r
}

// drawn are the machines that a rollout's key draws in one of its stages.
func (f *fleet) drawn(r rollout.Rollout, stage int) []*machine {
	r.Stage = stage
	return f.those(func(m *machine) bool {
		return rollout.Drawn(rollout.Machine{ID: m.id, Plan: m.plan}, &r)
	})
}

// those are the machines that fit.
func (f *fleet) those(fit func(*machine) bool) []*machine {
	var out []*machine
	for _, m := range f.machines {
		if fit(m) {
			out = append(out, m)
		}
	}
	return out
}

// that are the machines of which this is true, each asked itself.
func (f *fleet) that(ask func(*machine) (bool, error)) []*machine {
	f.t.Helper()
	var mu sync.Mutex
	yes := map[*machine]bool{}
	f.each(func(m *machine) error {
		is, err := ask(m)
		mu.Lock()
		defer mu.Unlock()
		yes[m] = is
		return err
	})
	return f.those(func(m *machine) bool { return yes[m] })
}

// without are all machines but these.
func (f *fleet) without(these []*machine) []*machine {
	return f.those(func(m *machine) bool { return !slices.Contains(these, m) })
}

// names are what people call the machines.
func names(machines []*machine) string {
	var out []string
	for _, m := range machines {
		out = append(out, m.name)
	}
	return strings.Join(out, " ")
}
