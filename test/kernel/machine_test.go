//go:build vm

package kernel

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// machine is a virtual machine with nothing in it but the kernel, a guest, the
// probe and the modules that a test wants.
type machine struct {
	*vm.VM
	t      *testing.T
	kernel *lab.Kernel
}

// boot starts a machine with the named modules of test/modules in /modules-test,
// each under the name that moduleName gives it.
func boot(t *testing.T, modules []lab.Module, options ...vm.BootOption) *machine {
	t.Helper()
	ctx := t.Context()
	l, k := workshop(t)
	var files []vm.File
	for _, m := range modules {
		ko, err := l.BuildModule(ctx, k, m)
		check(t, err)
		files = append(files, vm.File{Path: "/ko/" + m.Name + ".ko", Mode: 0o644, Content: read(t, ko)})
	}
	return bootWith(t, l, k, files, options...)
}

// workshop is a lab and the kernel that these tests are about.
func workshop(t *testing.T) (*lab.Lab, *lab.Kernel) {
	t.Helper()
	l, err := lab.New(t.Logf)
	check(t, err)
	k, err := l.Kernel(t.Context(), lab.Release)
	check(t, err)
	return l, k
}

// bootWith starts a machine with files of the test's own beside the probe.
func bootWith(t *testing.T, l *lab.Lab, k *lab.Kernel, files []vm.File, options ...vm.BootOption) *machine {
	t.Helper()
	ctx := t.Context()
	probe, err := l.GoBuild(ctx, "./test/kernel/probe")
	check(t, err)
	files = append(files,
		vm.File{Path: "/probe", Mode: 0o755, Content: read(t, probe)},
		vm.File{Path: "/etc/machine-id", Mode: 0o644, Content: []byte("0123456789abcdef0123456789abcdef\n")})
	initramfs, err := l.Initramfs(ctx, k, files...)
	check(t, err)
	options = append([]vm.BootOption{vm.RebootOnPanic(time.Second), vm.KernelArg("quiet")}, options...)
	v, err := vm.Start(ctx, vm.Config{
		Kernel: k.Image, Initramfs: initramfs, Dir: t.TempDir(), Memory: 512, Accel: l.Accel(ctx, k), Boot: options,
	})
	check(t, err)
	m := &machine{VM: v, t: t, kernel: k}
	t.Cleanup(func() {
		v.Stop()
		if t.Failed() {
			t.Logf("console:\n%s", v.Console())
		}
	})
	return m
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return b
}

// sh runs a line of shell that must succeed, and returns its output without the
// final newline.
func (m *machine) sh(line string) string {
	m.t.Helper()
	exit, err := m.Run(m.t.Context(), guest.Run{Argv: []string{"/bin/sh", "-c", line}})
	check(m.t, err)
	if exit.Code != 0 {
		m.t.Fatalf("%q ended with %d: %s%s", line, exit.Code, exit.Stdout, exit.Stderr)
	}
	return strings.TrimSuffix(string(exit.Stdout), "\n")
}

// outcome is what the probe printed.
type outcome struct {
	Result json.RawMessage
	Error  string
	Code   livepatch.Code
	Tasks  []kernel.Task
}

// probe runs the probe, which always answers.
func (m *machine) probe(args ...string) outcome {
	m.t.Helper()
	o, err := m.tryProbe(m.t.Context(), args...)
	check(m.t, err)
	return o
}

func (m *machine) tryProbe(ctx context.Context, args ...string) (o outcome, err error) {
	exit, err := m.Run(ctx, guest.Run{Argv: append([]string{"/probe"}, args...), Timeout: 2 * time.Minute})
	if err != nil {
		return o, err
	}
	m.t.Logf("probe %s: %s%s", strings.Join(args, " "), exit.Stdout, exit.Stderr)
	return o, json.Unmarshal(exit.Stdout, &o)
}

// must runs the probe for something that has to succeed.
func (m *machine) must(args ...string) outcome {
	m.t.Helper()
	o := m.probe(args...)
	if o.Error != "" {
		m.t.Fatalf("probe %v: %s", args, o.Error)
	}
	return o
}

// result decodes a probe's result.
func result[T any](t *testing.T, o outcome) T {
	t.Helper()
	var v T
	check(t, json.Unmarshal(o.Result, &v))
	return v
}

// ko is the path of a module in the machine.
func ko(name string) string { return filepath.Join("/ko", name+".ko") }

// cmdline is what everybody sees of the module cmdline.
func (m *machine) cmdline() string {
	m.t.Helper()
	return m.sh("cat /proc/cmdline")
}
