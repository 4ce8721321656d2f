//go:build vm

package kernel

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

func TestLivepatchModuleLoads(t *testing.T) {
	l, err := lab.New(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	k, err := l.Kernel(t.Context(), lab.Release)
	if err != nil {
		t.Fatal(err)
	}
	name := lab.ModuleName(lab.Release, 1)
	ko, err := l.BuildModule(t.Context(), k, lab.Module{Source: "cmdline", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := l.Initramfs(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	accel := l.Accel(t.Context(), k)
	t.Logf("accel %s %v", accel, time.Since(start))
	start = time.Now()
	m, err := vm.Start(t.Context(), vm.Config{
		Kernel: k.Image, Initramfs: initrd, Dir: t.TempDir(), Accel: accel,
		Boot: []vm.BootOption{vm.RebootOnPanic(time.Second), vm.KernelArg("quiet")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	t.Logf("booted in %v", time.Since(start))
	f, err := os.Open(ko)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Put(t.Context(), "/tmp/"+filepath.Base(ko), 0o644, f); err != nil {
		t.Fatal(err)
	}
	sh := func(cmd string) string {
		t.Helper()
		start := time.Now()
		exit, err := m.Run(t.Context(), guest.Run{Argv: []string{"/bin/sh", "-c", cmd}})
		if err != nil || exit.Code != 0 {
			t.Fatalf("%s: %v %v", cmd, err, exit)
		}
		t.Logf("%v %s: %s%s", time.Since(start), cmd, exit.Stdout, exit.Stderr)
		return string(exit.Stdout)
	}
	if strings.Contains(sh("cat /proc/cmdline"), "patched") {
		t.Fatal("patched before")
	}
	sh("insmod /tmp/" + name + ".ko; cat /sys/kernel/livepatch/*/transition; while [ $(cat /sys/kernel/livepatch/*/transition) = 1 ]; do sleep 0.1; done")
	if !strings.Contains(sh("cat /proc/cmdline"), "patched") {
		t.Fatal("not patched")
	}
	before := m.BootID()
	m.Run(t.Context(), guest.Run{Argv: []string{"/bin/sh", "-c", "echo c > /proc/sysrq-trigger"}})
	start = time.Now()
	if _, err := m.AwaitBoot(t.Context(), before, time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("rebooted in %v, panics %d", time.Since(start), m.Panics())
	if strings.Contains(sh("cat /proc/cmdline"), "patched") {
		t.Fatal("patched after reboot")
	}
}
