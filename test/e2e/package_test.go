//go:build vm

package e2e

import (
	"strings"
	"testing"

	"livepatch/internal/api"
	"livepatch/test/lab"
)

// TestLifeOfAMachine goes from the first enable to the purge of the package.
func TestLifeOfAMachine(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.publish(cmdline(1))
	w.configure()
	w.sh(w.token("life").Enable)
	w.shows(patched(1))
	w.seen("version 1 is applied", applied(1))
	w.says(w.sh("runuser -u nobody -- livepatch status"), "1.1", "applied")
	w.sh("runuser -u nobody -- livepatch kernel-upgrade-required || true")
	w.sh("livepatch doctor; canonical-livepatch status")

	// A newer one replaces it and its module goes.
	w.publish(cmdline(2))
	w.shows(patched(2))
	w.seen("version 2 is applied", applied(2))

	// The next boot has it before the network.
	w.check(w.host.Reboot(ctx))
	_, err := w.host.AwaitSystem(ctx)
	w.check(err)
	w.shows(patched(2))
	applied2, network, err := w.host.BeforeNetwork(ctx)
	w.check(err)
	if applied2 >= network {
		t.Errorf("applied after %v, the network was begun after %v", applied2, network)
	}

	// Withdrawn: back to the version before.
	_, err = w.service.Admin(ctx, "patch", "withdraw", lab.Release, "2.1", "--reason", "a test")
	w.check(err)
	w.shows(patched(1))
	w.seen("it is back at version 1", applied(1))

	w.upgrade()
	w.removeAndPurge()
}

// upgrade installs the package over itself: what runs stays, and what the
// administrator changed.
func (w *world) upgrade() {
	w.t.Helper()
	w.sh("echo '# kept by the administrator' >>/etc/livepatch/livepatch.yaml")
	before := w.sh("journalctl -b -k --no-pager | grep -c 'livepatch: enabling patch'")
	pid := w.sh("systemctl show -P MainPID livepatchd")
	w.sh("dpkg -i /root/livepatch_*.deb")
	if after := w.sh("systemctl show -P MainPID livepatchd"); after == pid {
		w.t.Error("the upgrade left the old daemon running")
	}
	w.shows(patched(1))
	w.sh("livepatch refresh || true")
	if after := w.sh("journalctl -b -k --no-pager | grep -c 'livepatch: enabling patch'"); after != before {
		w.t.Errorf("the upgrade loaded the livepatch again: %s times before, %s after", before, after)
	}
	w.says(w.sh("cat /etc/livepatch/livepatch.yaml"), "# kept by the administrator")
}

func (w *world) removeAndPurge() {
	w.t.Helper()
	w.says(w.sh("dpkg -r livepatch"), "until the next reboot")
	w.shows(patched(1))
	w.sh("test ! -e /usr/bin/livepatch && test -e /etc/livepatch/livepatch.yaml && test -d /var/lib/livepatch")

	// Installed again it is still enabled, and finds the livepatch in force.
	w.sh("dpkg -i /root/livepatch_*.deb")
	w.seen("it is there again", func(m api.Machine) bool { return applied(1)(m) })
	w.says(w.sh("livepatch status"), "1.1", "applied")

	// Unloaded, the kernel is as it was; disabled, the seat is free.
	w.sh("livepatch unload")
	w.untouched()
	w.sh("livepatch disable")
	var machines []api.Machine
	w.check(w.service.AdminJSON(w.t.Context(), &machines, "machine", "list"))
	if len(machines) != 0 {
		w.t.Errorf("a disabled machine still has a seat: %+v", machines)
	}

	w.sh("dpkg -P livepatch")
	if left := w.sh("ls -d /etc/livepatch /var/lib/livepatch /run/livepatch 2>/dev/null; systemctl list-unit-files | grep livepatchd; find /etc/systemd -name '*livepatchd*'; true"); strings.TrimSpace(left) != "" {
		w.t.Errorf("purging left:\n%s", left)
	}
	if state := w.sh("systemctl is-system-running || true"); strings.TrimSpace(state) != "running" {
		w.t.Errorf("after purging the system is %s", state)
	}
}

// TestServerPackage installs the server where a newcomer would.
func TestServerPackage(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	deb, err := w.lab.Package(ctx, t.TempDir(), "livepatch-server")
	w.check(err)
	out, err := w.host.Install(ctx, deb)
	w.check(err)
	w.says(out, "livepatch-server init")
	w.sh("runuser -u livepatch -- livepatch-server init --data /var/lib/livepatch-server --host localhost")
	w.sh("systemctl start livepatch-server && systemctl is-active livepatch-server")
	w.sh("ss -ltn | grep -q ':8443 '")
	w.sh("livepatch config remote-server=https://localhost:8443 ca-certs=@stdin </var/lib/livepatch-server/ca.crt")
	w.says(w.fails("livepatch enable lp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), "Unknown Auth-Token")

	w.sh("dpkg -r livepatch-server; test -e /var/lib/livepatch-server/server.db")
	w.says(w.sh("dpkg -P livepatch-server"), "operator")
	w.sh("test ! -e /var/lib/livepatch-server/server.db && test -d /var/lib/livepatch-server/operator/keys && test ! -e /etc/livepatch-server")
}
