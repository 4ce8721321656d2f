//go:build vm

package kernel

import (
	"path/filepath"
	"testing"

	"livepatch/internal/vm"
	"livepatch/test/lab"
)

// TestRealFixClosesTheBug: livepatch-admin build makes a livepatch of what Debian
// changed in one file, and a program that provokes the bug sees it go and come back.
// The patched module is loaded before the livepatch and, once more, after it.
func TestRealFixClosesTheBug(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l, k := workshop(t)
	diff, err := l.Diff(ctx, lab.VsockFix)
	check(t, err)
	const name = "lkp_vsock_fix"
	module, said, err := l.BuildFix(ctx, k, lab.VsockFix, diff, t.TempDir(), name)
	check(t, err)
	t.Logf("build:\n%s", said)
	provoke, err := l.GoBuild(ctx, "./test/fixes/repro")
	check(t, err)
	vsock := filepath.Join(k.Modules, "kernel", "net", "vmw_vsock", "vsock.ko")
	m := bootWith(t, l, k, []vm.File{
		{Path: ko(name), Mode: 0o644, Content: read(t, module)},
		{Path: "/ko/vsock.ko", Mode: 0o644, Content: read(t, vsock)},
		{Path: "/provoke", Mode: 0o755, Content: read(t, provoke)},
	})
	const bug, fixed = "maximum 1024, buffer 4096", "maximum 1024, buffer 1024"
	answers := func(when, want string) {
		t.Helper()
		if got := m.sh("/provoke vsock"); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	m.sh("insmod /ko/vsock.ko")
	answers("before", bug)
	m.must("load", ko(name))
	m.must("wait", name, "60s")
	answers("with the livepatch", fixed)
	m.sh("rmmod vsock && insmod /ko/vsock.ko")
	answers("with the module loaded after the livepatch", fixed)
	m.must("disable", name, "60s")
	answers("with the livepatch gone", bug)
}
