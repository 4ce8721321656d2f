package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// TestOnlyThePatchCountsAsFailure: what the network, the disk or the clock did to an
// attempt is not held against the patch; what the kernel or the signed bytes did is.
func TestOnlyThePatchCountsAsFailure(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v := livepatch.Version{Major: 1, Minor: 1}
	for code, failed := range map[livepatch.Code]int{
		livepatch.CodeUnavailable: 0, livepatch.CodeExpired: 0, livepatch.CodeTLS: 0, livepatch.CodeClock: 0,
		livepatch.CodeDisk: 0, livepatch.CodeMetadata: 0, livepatch.CodeRollback: 0,
		livepatch.CodeRefused: 1, livepatch.CodeTampered: 1, livepatch.CodeNotLivepatch: 1, livepatch.CodeInternal: 1,
	} {
		r := rollout.Rollout{ID: "r", Kernel: kernel.Target(), Version: v, State: rollout.Canary, Policy: quickly()}
		e := store.Evidence{Now: now, Started: now.Add(-time.Hour), Rollout: r, Judge: rollout.NewJudge(rollout.Judging{}), Weighed: map[store.Weighed]bool{},
			News: []store.News{{Machine: "m", Plan: "community", Version: v, Kind: livepatch.ReportFailed, Code: code, Received: now}}}
		got := weigh(e, func(m store.Member) contact { return contact{at: now, until: now} })
		if got.Judge.Tries.Failed != failed {
			t.Errorf("%s: %d failures count, want %d", code, got.Judge.Tries.Failed, failed)
		}
	}
}

// TestCrashInThePatchsOwnCodeHaltsASmallFleet: among eight machines no comparison
// proves anything, but the instruction at fault does.
func TestCrashInThePatchsOwnCodeHaltsASmallFleet(t *testing.T) {
	t.Parallel()
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprint("own code ", own), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 8, 0)
			f.publish(t, kernel, "one")
			n := 0
			f.used = func(m *fake) {
				if n++; n > 2 {
					return
				}
				module := m.loaded.Module
				f.crash(m, fmt.Sprintf("rip:other_place+0x%d", n))
				r := &m.reports[len(m.reports)-1]
				r.Module, r.Evidence = module, "BUG: kernel NULL pointer dereference\nRIP: 0010:new_read+0x1b/0x40\n"
				if own {
					r.Evidence = strings.Replace(r.Evidence, "/0x40", "/0x40 ["+module+"]", 1)
				}
			}
			f.run(6, f.halted)
			if f.halted() != own {
				t.Errorf("after %d crashes the rollout is %s: %+v", min(n, 2), f.only().State, f.only().Assessment)
			}
		})
	}
}

// TestHarmOfOneSortOfMachine: only one model crashes; the finding names it.
func TestHarmOfOneSortOfMachine(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 60, 0)
	sick := func(m *fake) bool { return slices.Index(f.machines, m)%3 == 0 }
	for _, m := range f.machines {
		m.hardware, m.virt = "Acme Server 1", "none"
		if sick(m) {
			m.hardware, m.virt = "Acme Server 2", "kvm"
		}
	}
	f.publish(t, kernel, "one")
	f.used = func(m *fake) {
		if sick(m) {
			f.crash(m, "rip:nic_poll+0x7")
		}
	}
	f.run(100, f.halted)
	r := f.only()
	if !f.halted() || r.Assessment == nil {
		t.Fatalf("the rollout is %s: %+v", r.State, r.Assessment)
	}
	named := slices.ContainsFunc(r.Changes[len(r.Changes)-1].Assessment.Findings, func(x rollout.Finding) bool { return x.Slice == "hardware=Acme Server 2" })
	if !named {
		t.Errorf("no finding names the hardware: %+v", r.Assessment.Findings)
	}
	m, err := f.operator.Machine(t.Context(), f.machines[0].id)
	if err != nil || m.Hardware != "Acme Server 2" || m.Virt != "kvm" {
		t.Errorf("the machine is shown as %q on %q (%v)", m.Hardware, m.Virt, err)
	}
}

// TestCrashWithoutAPatchAccusesNobody: the machine is granted the patch afterwards as
// before, the audit log stays as it was, and its signature counts as known.
func TestCrashWithoutAPatchAccusesNobody(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, 0)
	m := f.machines[0]
	f.checkIn(m)
	before, err := f.operator.Audit(t.Context(), 1000)
	must(t, err)
	f.crash(m, "rip:tcp_ack+0x1b")
	m.reports[0].Kernel = livepatch.KernelTarget{Release: "5.10.0-1-amd64", Arch: "amd64"}
	f.checkIn(m)
	after, err := f.operator.Audit(t.Context(), 1000)
	must(t, err)
	if len(after) != len(before) {
		t.Errorf("the audit log grew: %+v", after[0])
	}
	f.publish(t, kernel, "one")
	f.run(60, func() bool { return m.grants > 0 })
	if m.grants == 0 {
		t.Error("the machine is granted nothing any more")
	}
}

// TestPowerCutLongAfterTheLoadIsNoSuspicion: the version that ran is granted again.
func TestPowerCutLongAfterTheLoadIsNoSuspicion(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, 0)
	one := f.publish(t, kernel, "one")
	m := f.machines[0]
	f.run(60, func() bool { return m.loaded != nil })
	f.crash(m, "")
	m.suspects = nil // its boot guard blames nobody
	m.reports[0].Version = one.Version
	m.grants = 0
	f.clock.advance(time.Hour)
	f.run(60, func() bool { return m.grants > 0 })
	if m.grants == 0 {
		t.Error("the machine is not granted the livepatch again that it lost with the power")
	}
}

// TestCrashIsAsOldAsTheLoadBefore: a machine goes down a day after the load, loads
// the livepatch again at boot and reports both at once. That is no crash of a machine
// that has just loaded it.
func TestCrashIsAsOldAsTheLoadBefore(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, 0)
	one := f.publish(t, kernel, "one")
	m := f.machines[0]
	f.run(60, func() bool { return m.loaded != nil })
	f.clock.advance(24 * time.Hour)
	f.report(m, livepatch.ReportRebooted, one.Version, "rip:tcp_ack+0x1b")
	f.report(m, livepatch.ReportApplied, one.Version, "")
	f.checkIn(m)
	var age time.Duration
	_, err := f.Store.JudgeRollout(t.Context(), f.only().ID, func(e store.Evidence) store.Judgement {
		for _, n := range e.News {
			if n.Kind == livepatch.ReportRebooted {
				age = n.Received.Sub(n.Trial.Loaded)
			}
		}
		return store.Judgement{Rollout: e.Rollout, Judge: e.Judge}
	})
	must(t, err)
	if age < 24*time.Hour {
		t.Errorf("the livepatch counts as loaded %v before the crash", age)
	}
}
