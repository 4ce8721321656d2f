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
	"livepatch/test/lab"
)

// TestBadInput types what people get wrong, and does what goes wrong by itself. Each
// gets its sentence, and the kernel stays as it is.
func TestBadInput(t *testing.T) {
	w := newWorld(t)
	t.Run("enable", func(t *testing.T) { w.in(t).refusedEnables() })
	t.Run("patches", func(t *testing.T) { w.in(t).refusedPatches() })
}

// in is w for a subtest.
func (w *world) in(t *testing.T) *world {
	sub := *w
	sub.t = t
	return &sub
}

func (w *world) refusedEnables() {
	ctx := w.t.Context()
	good := w.token("good")

	w.says(w.fails("runuser -u nobody -- livepatch enable "+good.Secret+" --server "+w.service.URL), "root")
	w.says(w.fails("livepatch enable "+good.Secret+" --server "+w.service.URL), "ca-certs")
	w.says(w.fails("livepatch enable "+good.Secret+" --server https://10.0.2.2:1"), "10.0.2.2:1")
	w.configure()
	w.says(w.fails("livepatch enable lp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), "Unknown Auth-Token")

	revoked := w.token("good")
	_, err := w.service.Admin(ctx, "token", "revoke", revoked.ID)
	w.check(err)
	w.says(w.fails(revoked.Enable), "revoked")

	once := w.token("good", "--max-uses", "1")
	w.check(w.service.Enrol(ctx, once.Secret, "somebody-else"))
	w.says(w.fails(once.Enable), "1 machine")

	full := w.token("full")
	for _, name := range []string{"web1", "web2", "web3"} {
		w.check(w.service.Enrol(ctx, full.Secret, name))
	}
	w.says(w.fails(full.Enable), "web1", "web2", "web3", "seats")

	wrong := strings.Repeat("0", 64)
	w.fails("livepatch enable " + good.Secret + " --trust sha256:" + wrong)

	// The same server by a name that its certificate does not have.
	other := strings.Replace(w.service.URL, lab.ServiceHost, "other.test", 1)
	w.says(w.fails("livepatch enable "+good.Secret+" --server "+other), "other.test", "certificate")

	// A daemon that starts with the clock wrong has no connection from before.
	w.sh("date -s '2001-02-03 04:05:06' && systemctl restart livepatchd")
	w.says(w.fails(good.Enable), "clock")
	w.sh(fmt.Sprintf("date -s @%d && systemctl restart livepatchd", time.Now().Unix()))

	w.service.Stop()
	w.says(w.fails(good.Enable), lab.ServiceHost)
	w.check(w.service.Start(ctx))

	w.says(w.fails("livepatch refresh"), "not enabled")
	w.untouched()
	w.sh("systemctl is-active livepatchd")
	// After all that, the right command still works.
	w.sh(good.Enable)
}

func (w *world) refusedPatches() {
	ctx := w.t.Context()
	// Another build of the same release.
	ko, err := w.lab.BuildModule(ctx, w.kernel, cmdline(1))
	w.check(err)
	_, err = w.service.Admin(ctx, "publish", ko, "--fixes", "CVE-2026-1234:high", "--build-id", strings.Repeat("ab", 20))
	w.check(err)
	w.sh("livepatch refresh || true")
	w.untouched()

	w.tamperedArchive()
	w.fullDisk()
	w.modulesDisabled()
}

// tamperedArchive changes one byte of what the server offers.
func (w *world) tamperedArchive() {
	w.t.Helper()
	w.sh("systemctl stop livepatchd")
	w.publish(cmdline(2))
	var patch api.Patch
	w.check(w.service.AdminJSON(w.t.Context(), &patch, "patch", "show", lab.Release, "2.1"))
	path := filepath.Join(w.service.Dir, "blobs", "stream", "archives", patch.Archive.SHA256+".zst")
	good, err := os.ReadFile(path)
	w.check(err)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	w.check(os.Chmod(path, 0o600))
	w.check(os.WriteFile(path, bad, 0o600))
	w.sh("systemctl start livepatchd; livepatch refresh || true")
	m := w.seen("the archive was refused", func(m api.Machine) bool { return m.Problem != "" })
	w.t.Logf("tampered archive: %s", m.Problem)
	w.untouched()

	// The next version, whole, is applied; that one is not tried again in this boot.
	w.check(os.WriteFile(path, good, 0o600))
	w.publish(cmdline(3))
	w.shows(patched(3))
	w.seen("the next version is applied", applied(3))
}

// fullDisk leaves no byte for the next livepatch. The one in force stays.
func (w *world) fullDisk() {
	w.t.Helper()
	w.sh("sync; fallocate -l $(df --output=avail -B1 / | tail -1) /fill; dd if=/dev/zero of=/fill2 bs=64k 2>/dev/null; dd if=/dev/zero of=/fill3 bs=512 2>/dev/null; sync; df / >&2; true")
	w.publish(cmdline(4))
	w.sh("livepatch refresh || true")
	w.check(lab.Await(w.t.Context(), "status to tell of the full disk", patience, func() (string, bool, error) {
		out, err := w.host.Shell(w.t.Context(), "livepatch status; true")
		return out, strings.Contains(out, "disk is full") || strings.Contains(out, "no space left"), err
	}))
	w.shows(patched(3))
	w.sh("rm -f /fill /fill2 /fill3; sync")
	w.publish(cmdline(5))
	w.shows(patched(5))
	w.seen("version 5 is applied", applied(5))
}

// modulesDisabled is the last test of a boot: nothing turns it back.
func (w *world) modulesDisabled() {
	w.t.Helper()
	w.sh("sysctl -w kernel.modules_disabled=1")
	w.publish(cmdline(6))
	w.sh("livepatch refresh || true")
	w.says(w.fails("livepatch doctor"), "modules_disabled")
	m := w.seen("modules are disabled", func(m api.Machine) bool { return strings.Contains(m.Problem, "modules_disabled") })
	w.shows(patched(5))
	if want := (livepatch.Version{Major: 5, Minor: 1}); m.Version != want {
		w.t.Errorf("the server sees version %v, want %v", m.Version, want)
	}
}
