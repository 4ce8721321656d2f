//go:build vm

package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// reported tells whether the machine said this of version major.1, and text is in it.
func reported(kind livepatch.ReportKind, major uint32, text string) func(api.Machine) bool {
	return func(m api.Machine) bool {
		return slices.ContainsFunc(m.Reports, func(r livepatch.Report) bool {
			return r.Kind == kind && r.Version.Major == major && strings.Contains(r.Detail+r.Evidence+r.Signature, text)
		})
	}
}

// TestTroubledPatches publishes patches that do harm short of a panic.
func TestTroubledPatches(t *testing.T) {
	w := newWorld(t)
	w.configure()
	w.sh("livepatch config transition-timeout=5s")
	w.sh(w.token("trouble").Enable)

	// One whose transition cannot end is taken back, and who held it up is named.
	w.publish(lab.Module{Source: "stuck", Name: lab.ModuleName(lab.Release, 1)})
	w.seen("the transition was stuck", reported(livepatch.ReportStuck, 1, "kthreadd"))
	w.untouched()

	// One that oopses stays, since it may be the lesser evil, but everybody knows.
	w.sh("livepatch config transition-timeout=60s soak-time=30s")
	w.publish(lab.Module{Source: "oops", Name: lab.ModuleName(lab.Release, 2)})
	w.seen("the patch is applied", applied(2))
	// The reader dies of it. Not cat, which would take our pipe with it.
	_, err := w.host.Run(t.Context(), guest.Run{Argv: []string{"sh", "-c", "read line </proc/cmdline"}})
	w.check(err)
	w.seen("the kernel oopsed", reported(livepatch.ReportOopsed, 2, "livepatch_cmdline_proc_show"))
	w.check(lab.Await(t.Context(), "the machine to know it, too", time.Minute, func() (string, bool, error) {
		status := w.sh("livepatch status --format json; true")
		return status, strings.Contains(status, string(livepatch.StateAppliedWithBug)), nil
	}))
}

// TestWhatCannotBePatched boots a kernel that wants signed modules.
func TestWhatCannotBePatched(t *testing.T) {
	w := newWorld(t, vm.KernelArg("module.sig_enforce=1"))
	w.configure()
	w.sh(w.token("signed").Enable)

	w.publish(cmdline(1))
	w.sh("livepatch refresh || true")
	m := w.seen("an unsigned module was refused", func(m api.Machine) bool { return strings.Contains(m.Problem, "signed") })
	t.Logf("unsigned: %s", m.Problem)
	w.untouched()

	// Signed, but by a key that this kernel has never heard of.
	_, err := w.service.Admin(t.Context(), "keys", "module-cert", "--out", t.TempDir()+"/module.der")
	w.check(err)
	w.publish(cmdline(2), "--sign-module")
	w.sh("livepatch refresh || true")
	w.seen("an unknown key was refused", func(m api.Machine) bool {
		return slices.ContainsFunc(m.Reports, func(r livepatch.Report) bool {
			return r.Version.Major == 2 && r.Kind == livepatch.ReportFailed && r.Code == livepatch.CodeUntrustedKey
		})
	})
	w.untouched()
	status := w.sh("livepatch status; true")
	t.Logf("unknown key:\n%s", status)

	// What a container would see: systemd's own mark of being in one.
	w.sh("echo lxc >/run/systemd/container && systemctl restart livepatchd")
	w.says(w.fails("livepatch doctor"), "container")
	w.untouched()
}
