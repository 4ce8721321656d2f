//go:build vm

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"livepatch/internal/api"
	"livepatch/test/lab"
)

// TestKillNine kills the daemon in the middle of enabling, loading and unloading, and
// the server in the middle of a publication. Nothing is lost, nothing happens twice.
func TestKillNine(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.configure()
	token := w.token("kill")

	for _, delay := range []string{"0.02", "0.1", "0.3"} {
		// Whether this one enrols or not, depends on when the daemon dies.
		w.sh("(" + token.Enable + " &) >/dev/null 2>&1; sleep " + delay + "; " + killDaemon)
	}
	w.sh("livepatch status >/dev/null 2>&1 && livepatch status --format json | grep -q '\"succeeded\"' || " + token.Enable + " || livepatch refresh")
	var machines []api.Machine
	w.check(w.service.AdminJSON(ctx, &machines, "machine", "list"))
	if len(machines) != 1 {
		t.Errorf("one machine enrolled %d times: %+v", len(machines), machines)
	}

	// Killed as soon as the kernel knows the patch, while tasks are being moved.
	watch := fmt.Sprintf("for i in $(seq 600); do [ -e /sys/kernel/livepatch/%s ] && break; sleep 0.1; done; %s", cmdline(1).Name, killDaemon)
	w.publish(cmdline(1))
	w.sh(watch)
	w.shows(patched(1))
	w.seen("version 1 is applied", applied(1))

	w.killedServer()
	w.publish(cmdline(2))
	w.shows(patched(2))
	m := w.seen("version 2 is applied", applied(2))
	if len(m.Suspects) > 0 {
		t.Errorf("a killed daemon made suspects of %v", m.Suspects)
	}
	w.check(lab.Await(ctx, "the replaced module to be removed", patience, func() (string, bool, error) {
		out, err := w.host.Shell(ctx, "grep ^lkp_ /proc/modules")
		return out, !strings.Contains(out, cmdline(1).Name), err
	}))

	_, err := w.service.Admin(ctx, "patch", "withdraw", lab.Release, "2.1", "--reason", "a test")
	w.check(err)
	time.Sleep(500 * time.Millisecond)
	w.sh(killDaemon)
	w.shows(patched(1))
}

// killDaemon kills the daemon and starts it anew at once; systemd would do so too,
// but it counts, and gives up after a few.
const killDaemon = "kill -9 $(systemctl show -P MainPID livepatchd); sleep 0.5; systemctl reset-failed livepatchd; systemctl start livepatchd"

// killedServer kills the server at three moments of a publication that is then
// repeated: one livepatch is published, once.
func (w *world) killedServer() {
	w.t.Helper()
	ctx := w.t.Context()
	ko, err := w.lab.BuildModule(ctx, w.kernel, cmdline(2))
	w.check(err)
	for _, delay := range []time.Duration{20, 80, 160} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.service.Publish(ctx, w.kernel, ko) //nolint:errcheck // may fail; it is repeated
		}()
		time.Sleep(delay * time.Millisecond)
		w.service.Kill()
		<-done
		w.check(w.service.Start(ctx))
	}
	_, err = w.service.Publish(ctx, w.kernel, ko)
	w.check(err)
	var patches []api.Patch
	w.check(w.service.AdminJSON(ctx, &patches, "patch", "list"))
	if len(patches) != 2 {
		w.t.Errorf("after a publication with crashes there are %d livepatches, want 2", len(patches))
	}
}
