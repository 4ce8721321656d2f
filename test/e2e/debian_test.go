//go:build vm

package e2e

import (
	"testing"
	"time"

	"livepatch/test/lab"
)

func TestDebianBoots(t *testing.T) {
	l, err := lab.New(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	k, err := l.Kernel(t.Context(), lab.Release)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Debian(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	h, err := l.StartDebian(t.Context(), k, t.TempDir(), "debian")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Stop()
	t.Logf("agent after %v", time.Since(start))
	state, err := h.AwaitSystem(t.Context())
	t.Logf("system %q %v after %v", state, err, time.Since(start))
	for _, c := range []string{"systemd-analyze", "systemd-analyze critical-chain", "systemctl log-level debug; dmesg -n debug; ps ax"} {
		out, err := h.Shell(t.Context(), c)
		t.Logf("%s: %v\n%s", c, err, out)
	}
	start = time.Now()
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("rebooted, agent after %v", time.Since(start))
	state, err = h.AwaitSystem(t.Context())
	t.Logf("system %q %v after %v", state, err, time.Since(start))
	out, err := h.Shell(t.Context(), "cat /etc/machine-id; journalctl -b -1 --no-pager | tail -30")
	t.Logf("%v\n%s", err, out)
	t.Log(h.Console())
}
