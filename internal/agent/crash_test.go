package agent

import (
	"slices"
	"testing"

	"livepatch"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// TestKilledDuringEnable: kill -9 at each point of enable, then the daemon starts
// again and the command is repeated. One seat is taken, and a patch can be applied.
func TestKilledDuringEnable(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"enable:asked", "enable:answered", "enable:done"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if !b.killAt(point, b.enable) {
				t.Fatal("the point was not reached")
			}
			b.boot()
			if _, err := b.a.enable(t.Context(), localapi.EnableRequest{Token: goodToken, Server: serverURL}); point == "enable:done" {
				wantError(t, err, livepatch.CodeEnabled, "enabled already")
			} else {
				b.ok(err)
			}
			if len(b.srv.machines) != 1 {
				t.Errorf("%d seats are taken, want 1", len(b.srv.machines))
			}
			b.publish(1)
			b.refresh()
			b.wantRunning(moduleName(1))
		})
	}
}

// TestKilledDuringLoad: kill -9 at each point of a load, then the daemon starts
// again in the same boot. Version 2.1 ends in force, was given to the kernel once,
// and its outcome is told once.
func TestKilledDuringLoad(t *testing.T) {
	t.Parallel()
	for _, point := range []string{
		"check:answered", "apply:fetched", "apply:journalled", "apply:loaded", "apply:transitioned", "apply:remembered",
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			b.refresh()
			b.publish(2)
			if !b.killAt(point, func() { b.refresh() }) {
				t.Fatal("the point was not reached")
			}
			b.boot()
			b.refresh()
			b.wantLoads(moduleName(1), moduleName(2))
			b.wantRunning(moduleName(2))
			b.wantToldOnce(version(2))
			if s := b.status(); s.Status[0].Livepatch.State != livepatch.StateApplied || len(s.Problems) != 0 {
				t.Errorf("status is %+v, problems %v", s.Status[0].Livepatch, s.Problems)
			}
			b.orderly()
			b.boot()
			b.wantRunning(moduleName(2))
		})
	}
}

// wantToldOnce checks that the server has one applied report of the version.
func (b *bench) wantToldOnce(v livepatch.Version) {
	b.Helper()
	n := 0
	for _, r := range b.srv.reports {
		if r.Kind == livepatch.ReportApplied && r.Version == v {
			n++
		}
	}
	if n != 1 {
		b.Errorf("the server was told %d times that %s is applied, want once", n, v)
	}
}

// TestPowerCutDuringLoad: the same points, but the whole machine goes down. What
// the kernel may have seen is a suspect; what it did not is just tried again.
func TestPowerCutDuringLoad(t *testing.T) {
	t.Parallel()
	for point, suspected := range map[string]bool{
		"check:answered": false, "apply:fetched": false,
		"apply:journalled": true, "apply:loaded": true, "apply:transitioned": true, "apply:remembered": true,
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			if !b.killAt(point, func() { b.refresh() }) {
				t.Fatal("the point was not reached")
			}
			b.kern.Reboot()
			loads := len(b.loads())
			b.boot()
			b.refresh()
			if suspected {
				if len(b.loads()) != loads {
					t.Error("the suspect was loaded again")
				}
				b.wantProblem(livepatch.CodeSuspect, "went down without a shutdown")
				return
			}
			b.wantRunning(moduleName(1))
		})
	}
}

// TestGivenUpAttemptAccusesNobody: the daemon dies before the kernel has the patch,
// and the server does not grant it again. A power cut later is not its fault.
func TestGivenUpAttemptAccusesNobody(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	if !b.killAt("apply:journalled", func() { b.refresh() }) {
		t.Fatal("the point was not reached")
	}
	b.boot()
	b.srv.give(nil)
	b.refresh()
	b.kern.Reboot()
	b.boot()
	if len(b.a.memory.Suspects) != 0 {
		t.Errorf("suspects are %v", b.a.memory.Suspects)
	}
	b.srv.offer(version(1))
	b.refresh()
	b.wantRunning(moduleName(1))
}

// TestGivenUpAttemptLeavesTheGuardOfWhatRuns: the same, while 1.1 soaks.
func TestGivenUpAttemptLeavesTheGuardOfWhatRuns(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.publish(2)
	if !b.killAt("apply:journalled", func() { b.refresh() }) {
		t.Fatal("the point was not reached")
	}
	b.boot()
	b.srv.give(nil)
	b.refresh()
	if j := b.a.journal; j == nil || j.Version != version(1) || j.Phase != phaseSoaking {
		t.Fatalf("the journal says %+v, want 1.1 to soak", j)
	}
	b.kern.Crash("two_show+0x5")
	b.boot()
	b.wantRunning()
	b.wantProblem(livepatch.CodeSuspect, "livepatch 1.1")
}

func TestKilledWhileAccusing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.kern.Crash("cmdline_proc_show+0x1b")
	b.o.Crash = func(at string) {
		if at == "guard:accused" {
			panic(errKilled)
		}
	}
	func() {
		defer func() {
			if recover() != errKilled {
				t.Fatal("the point was not reached")
			}
		}()
		b.boot()
	}()
	b.o.Crash = nil
	b.boot()
	b.refresh()
	b.wantRunning()
	if kinds := b.srv.kinds(); !slices.Equal(kinds, []livepatch.ReportKind{livepatch.ReportApplied, livepatch.ReportRebooted}) {
		t.Errorf("the server was told %v", kinds)
	}
}

func TestKilledDuringUnload(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"unload:forgotten", "unload:unloaded"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			b.refresh()
			b.repo.Withdraw(kerneltest.Running().Target(), version(1), "bad")
			if !b.killAt(point, func() { b.refresh() }) {
				t.Fatal("the point was not reached")
			}
			b.boot()
			b.refresh()
			b.wantRunning()
			b.wantLoads(moduleName(1))
			if len(b.status().Problems) != 0 {
				t.Errorf("problems %v", b.status().Problems)
			}
		})
	}
}

func TestKilledDuringDisable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	if !b.killAt("disable:left", func() { _, _ = b.a.disable(t.Context()) }) {
		t.Fatal("the point was not reached")
	}
	b.orderly()
	b.boot()
	b.wantRunning()
	b.enable()
	b.srv.offer(version(1))
	b.refresh()
	b.wantRunning(moduleName(1))
}

// TestLostAnswerIsNotCountedTwice: the server stores a report but its answer gets
// lost, so the report comes again.
func TestLostAnswerIsNotCountedTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.kern.AfterLoad(func(kerneltest.Module) { b.srv.set(func(s *fakeServer) { s.lose = true }) })
	_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{})
	wantError(t, err, livepatch.CodeUnavailable, "livepatch.test")
	b.wantRunning(moduleName(1))
	b.kern.AfterLoad(nil)
	b.srv.lose = false
	b.orderly() // reports outlive a reboot
	b.boot()
	b.refresh()
	n := 0
	for _, c := range b.srv.checks {
		for _, r := range c.Reports {
			if r.Kind == livepatch.ReportApplied && r.Grant != "" {
				n++
			}
		}
	}
	if got := b.srv.kinds(); n < 2 || len(got) != 2 {
		t.Errorf("the grant's report was sent %d times and stored as %v", n, got)
	}
}
