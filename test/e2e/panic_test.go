//go:build vm

package e2e

import (
	"slices"
	"strings"
	"testing"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// TestPanickingPatchIsNotLoadedAgain is the promise that no machine crash-loops on
// our account.
func TestPanickingPatchIsNotLoadedAgain(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.publish(lab.Module{Source: "panic", Name: lab.ModuleName(lab.Release, 1)})
	w.configure()
	first := w.host.BootID()
	w.sh(w.token("panic").Enable)
	w.seen("the patch is applied", applied(1))

	// Now its function runs. The answer never comes.
	w.host.Run(ctx, guest.Run{Argv: []string{"cat", "/proc/cmdline"}}) //nolint:errcheck // the reboot is seen below
	_, err := w.host.AwaitBoot(ctx, first, patience)
	w.check(err)
	if w.host.Panics() != 1 {
		t.Fatalf("the kernel panicked %d times", w.host.Panics())
	}
	_, err = w.host.AwaitSystem(ctx)
	w.check(err)

	w.untouched()
	status := w.sh("livepatch status")
	t.Logf("status after the panic:\n%s", status)
	w.says(status, "1.1", "held back")

	bad := livepatch.Version{Major: 1, Minor: 1}
	m := w.seen("the patch is a suspect", func(m api.Machine) bool { return slices.Contains(m.Suspects, bad) })
	if !slices.ContainsFunc(m.Reports, func(r livepatch.Report) bool {
		return r.Kind == livepatch.ReportRebooted && r.Version == bad && r.BootID == first
	}) {
		t.Errorf("the server has no report of the reboot: %+v", m.Reports)
	}
	shown, err := w.service.Admin(ctx, "machine", "show", w.machineID)
	w.check(err)
	t.Logf("machine show:\n%s", shown)
	w.says(shown, "suspect", "rebooted")

	// Nor when asked for, nor after another, orderly reboot.
	w.sh("livepatch refresh || true")
	w.untouched()
	w.check(w.host.Reboot(ctx))
	_, err = w.host.AwaitSystem(ctx)
	w.check(err)
	w.untouched()
	if w.host.Panics() != 1 {
		t.Errorf("the kernel panicked again: %d times", w.host.Panics())
	}

	// A better version is loaded.
	w.publish(cmdline(2))
	w.shows(patched(2))
	w.seen("the better version is applied", applied(2))
	if status := w.sh("livepatch status --format json"); !strings.Contains(status, `"2.1"`) {
		t.Errorf("status does not show 2.1:\n%s", status)
	}
}
