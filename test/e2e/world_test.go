//go:build vm

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// patience is how long anything may take that normally takes seconds: emulated
// machines share two cores with each other and with compilers.
const patience = 3 * time.Minute

// world is a server on this host and a Debian with our package installed.
type world struct {
	t         *testing.T
	lab       *lab.Lab
	kernel    *lab.Kernel
	service   *lab.Service
	host      *lab.Host
	deb       string
	machineID string
	// original is what /proc/cmdline shows while nothing is patched.
	original string
}

// newWorld starts both and configures the machine for the server.
func newWorld(t *testing.T, boot ...vm.BootOption) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t}
	var err error
	w.lab, err = lab.New(t.Logf)
	w.check(err)
	w.kernel, err = w.lab.Kernel(ctx, lab.Release)
	w.check(err)
	w.deb, err = w.lab.Package(ctx, t.TempDir(), "livepatch")
	w.check(err)
	w.service, err = w.lab.NewService(ctx, filepath.Join(t.TempDir(), "server"))
	w.check(err)
	t.Cleanup(func() {
		w.service.Stop()
		if t.Failed() {
			t.Logf("server's log:\n%s", w.service.Log())
		}
	})
	w.host, err = w.lab.StartDebian(ctx, w.kernel, t.TempDir(), "debian", boot...)
	w.check(err)
	t.Cleanup(func() {
		w.host.Stop()
		if t.Failed() {
			t.Logf("console:\n%s", w.host.Console())
		}
	})
	state, err := w.host.AwaitSystem(ctx)
	w.check(err)
	if state != "running" {
		t.Fatalf("Debian came up %q: %s", state, w.sh("systemctl --failed"))
	}
	out, err := w.host.Install(ctx, w.deb)
	w.check(err)
	t.Logf("dpkg -i:\n%s", out)
	w.machineID = strings.TrimSpace(w.sh("cat /etc/machine-id"))
	w.original = w.sh("cat /proc/cmdline")
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// sh runs a line of shell in the machine that must succeed.
func (w *world) sh(line string) string {
	w.t.Helper()
	out, err := w.host.Shell(w.t.Context(), line)
	w.check(err)
	return out
}

// fails runs a line of shell in the machine that must end with another code than 0,
// and returns what it said.
func (w *world) fails(line string) string {
	w.t.Helper()
	exit, err := w.host.Run(w.t.Context(), guest.Run{Argv: []string{"/bin/sh", "-c", line}, Timeout: patience})
	w.check(err)
	out := string(exit.Stdout) + string(exit.Stderr)
	w.t.Logf("# %s\n%s[code %d]", line, out, exit.Code)
	if exit.Code == 0 || exit.TimedOut {
		w.t.Errorf("%q ended with code %d, timed out %v", line, exit.Code, exit.TimedOut)
	}
	return out
}

// says fails the test when a message has not all the words.
func (w *world) says(message string, words ...string) {
	w.t.Helper()
	for _, word := range words {
		if !strings.Contains(message, word) {
			w.t.Errorf("%q is not in the message:\n%s", word, message)
		}
	}
}

// untouched fails the test when there is anything of ours in the kernel.
func (w *world) untouched() {
	w.t.Helper()
	if got := w.sh("cat /proc/cmdline"); got != w.original {
		w.t.Errorf("the kernel was touched: /proc/cmdline is %q", got)
	}
	if got := w.sh("ls /sys/kernel/livepatch; grep -E '^lkp_' /proc/modules || true"); got != "" {
		w.t.Errorf("the kernel was touched: %s", got)
	}
}

// configure points the machine at the server and makes the server's authority known.
func (w *world) configure() {
	w.t.Helper()
	ca, err := os.ReadFile(filepath.Join(w.service.Dir, "ca.crt"))
	w.check(err)
	exit, err := w.host.Run(w.t.Context(), guest.Run{
		Argv: []string{"livepatch", "config", "remote-server=" + w.service.URL, "ca-certs=@stdin"}, Stdin: ca,
	})
	w.check(err)
	if exit.Code != 0 {
		w.t.Fatalf("livepatch config: %s%s", exit.Stdout, exit.Stderr)
	}
}

func (w *world) token(account string, flags ...string) api.CreatedToken {
	w.t.Helper()
	token, err := w.service.Token(w.t.Context(), account, flags...)
	w.check(err)
	return token
}

// publish compiles a module of test/modules and publishes it as the next version.
func (w *world) publish(m lab.Module, flags ...string) {
	w.t.Helper()
	ko, err := w.lab.BuildModule(w.t.Context(), w.kernel, m)
	w.check(err)
	_, err = w.service.Publish(w.t.Context(), w.kernel, ko, flags...)
	w.check(err)
}

// cmdline is a version of the livepatch that everybody can see.
func cmdline(version int) lab.Module {
	return lab.Module{Source: "cmdline", Name: lab.ModuleName(lab.Release, version), Version: version}
}

// shows waits until /proc/cmdline in the machine begins with text.
func (w *world) shows(text string) {
	w.t.Helper()
	w.check(lab.Await(w.t.Context(), fmt.Sprintf("/proc/cmdline to show %q", text), patience, func() (string, bool, error) {
		out, err := w.host.Shell(w.t.Context(), "cat /proc/cmdline")
		return out, strings.HasPrefix(out, text), err
	}))
}

// patched is what version n of cmdline shows.
func patched(n int) string { return fmt.Sprintf("this has been live patched, version %d", n) }

// seen waits until the server's view of the machine is as it should be.
func (w *world) seen(what string, is func(api.Machine) bool) api.Machine {
	w.t.Helper()
	var m api.Machine
	w.check(lab.Await(w.t.Context(), "the server to see that "+what, patience, func() (_ string, _ bool, err error) {
		m, err = w.service.Machine(w.t.Context(), w.machineID)
		return fmt.Sprintf("%+v", m), err == nil && is(m), err
	}))
	return m
}

// applied tells whether the machine says that it runs version major.1.
func applied(major uint32) func(api.Machine) bool {
	return func(m api.Machine) bool {
		return m.PatchState == livepatch.StateApplied && m.Version == livepatch.Version{Major: major, Minor: 1}
	}
}
