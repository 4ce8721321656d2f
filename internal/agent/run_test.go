package agent

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// running starts the loop in a synctest bubble and stops it at the end.
func (b *bench) running() {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- b.a.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
}

func TestLoopChecksByTheClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.running()
		if n := b.srv.count(); n != 1 {
			t.Fatalf("%d checks at start, want 1", n)
		}
		// An hour by the setting and the server's wish, give or take a tenth.
		time.Sleep(53 * time.Minute)
		synctest.Wait()
		if n := b.srv.count(); n != 1 {
			t.Errorf("%d checks after 53 minutes, want 1", n)
		}
		time.Sleep(14 * time.Minute)
		synctest.Wait()
		if n := b.srv.count(); n != 2 {
			t.Errorf("%d checks after 67 minutes, want 2", n)
		}
	})
}

func TestEventCausesCheckInSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.running()
		b.publish(1)
		b.srv.events <- struct{}{}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		b.wantRunning(moduleName(1))
	})
}

func TestLoopSurvivesAServerThatIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.srv.down = true
		b.running()
		time.Sleep(5 * time.Hour)
		synctest.Wait()
		if s := b.status(); !strings.Contains(s.ServerCheckIn, "not reachable") {
			t.Errorf("check-in is %q", s.ServerCheckIn)
		}
		b.publish(1)
		b.srv.set(func(s *fakeServer) { s.down = false })
		time.Sleep(67 * time.Minute)
		synctest.Wait()
		b.wantRunning(moduleName(1))
		b.srv.set(func(s *fakeServer) {
			if s.listens == 0 {
				t.Error("the event stream was not taken up again")
			}
		})
	})
}

// TestNetworkComesLateAtBoot: the first checks fail because there is no network
// yet; nobody waits an hour for the next.
func TestNetworkComesLateAtBoot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.publish(1)
		b.srv.down = true
		b.running()
		time.Sleep(40 * time.Second)
		b.srv.set(func(s *fakeServer) { s.down = false })
		time.Sleep(time.Minute)
		synctest.Wait()
		b.wantRunning(moduleName(1))
	})
}

// TestMissedEventsAreMadeUpFor: the event stream breaks; what happened meanwhile is
// asked for when it is back.
func TestMissedEventsAreMadeUpFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.running()
		b.srv.breakEvents()
		synctest.Wait()
		b.publish(1)
		time.Sleep(15 * time.Second)
		synctest.Wait()
		b.wantRunning(moduleName(1))
	})
}

func TestChecksByTheClockCanBeTurnedOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.running()
		_, err := b.a.set(t.Context(), localapi.SetConfig{Values: map[string]string{"check-interval": "0"}})
		b.ok(err)
		time.Sleep(time.Minute) // the new settings are tried out at once
		synctest.Wait()
		n := b.srv.count()
		time.Sleep(100 * time.Hour)
		synctest.Wait()
		if got := b.srv.count(); got != n {
			t.Errorf("%d checks by the clock", got-n)
		}
	})
}

func TestSoakEndsHealthy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.kern.Set("proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
		b.enable()
		b.publish(1)
		b.running()
		time.Sleep(16 * time.Minute)
		synctest.Wait()
		want := []livepatch.ReportKind{livepatch.ReportApplied, livepatch.ReportHealthy, livepatch.ReportHealthy, livepatch.ReportHealthy}
		if got := b.srv.kinds(); !slices.Equal(got, want) {
			t.Errorf("the server was told %v, want %v", got, want)
		}
		if b.a.journal.Phase != phaseHealthy {
			t.Errorf("the journal says %s after the soak", b.a.journal.Phase)
		}
		for _, r := range b.srv.reports {
			if r.Vitals == nil || r.Vitals.MemAvailable != 1<<20 {
				t.Errorf("the report %s says nothing of the memory: %+v", r.Kind, r.Vitals)
			}
		}
	})
}

func TestTroubleAfterLoadIsReported(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		trouble func(*kerneltest.Kernel)
		kind    livepatch.ReportKind
		sign    string
		suspect bool
	}{
		"warning":        {func(k *kerneltest.Kernel) { k.Warn("tcp_ack+0x1b") }, livepatch.ReportWarned, "rip:tcp_ack+0x1b", false},
		"oops elsewhere": {func(k *kerneltest.Kernel) { k.Oops("tcp_ack+0x1b") }, livepatch.ReportOopsed, "rip:tcp_ack+0x1b", false},
		"oops in the module": {func(k *kerneltest.Kernel) {
			k.Log("BUG: unable to handle page fault", "RIP: 0010:new_show+0x5/0x20 ["+moduleName(1)+"]", "---[ end trace 0 ]---")
		}, livepatch.ReportOopsed, "rip:new_show+0x5", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.enable()
				b.publish(1)
				b.running()
				tc.trouble(b.kern)
				time.Sleep(16 * time.Minute)
				synctest.Wait()
				r, ok := b.srv.report(tc.kind)
				if !ok || r.Signature != tc.sign || r.Evidence == "" || r.Version != version(1) {
					t.Errorf("the server was told %+v", r)
				}
				if _, healthy := b.srv.report(livepatch.ReportHealthy); healthy {
					t.Error("the server was told that all is well")
				}
				if n := len(b.srv.kinds()); n != 2 {
					t.Errorf("the server was told %v", b.srv.kinds())
				}
				if s := b.status(); s.Status[0].Livepatch.State != livepatch.StateAppliedWithBug || len(s.Problems) != 1 {
					t.Errorf("status is %+v, problems %v", s.Status[0].Livepatch, s.Problems)
				}
				if got := len(b.a.memory.Suspects) == 1; got != tc.suspect {
					t.Errorf("suspects are %v", b.a.memory.Suspects)
				}
			})
		})
	}
}

func TestWithdrawnPatchIsUnloadedWithoutAGrant(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.repo.Withdraw(kerneltest.Running().Target(), version(1), "it eats files")
	s := b.refresh()
	b.wantRunning()
	if r, ok := b.srv.report(livepatch.ReportUnloaded); !ok || r.Version != version(1) || r.Detail != "it eats files" {
		t.Errorf("the server was told %+v", r)
	}
	if s.Status[0].Livepatch.State != livepatch.StateNothingToApply || !s.Status[0].Livepatch.Version.IsZero() {
		t.Errorf("status is %+v", s.Status[0].Livepatch)
	}
	b.orderly()
	b.boot()
	b.wantRunning()
}

// TestWithdrawalReachesWhomTheServerDoesNotTalkTo: the check-in fails, for whatever
// reason, but the stream is there.
func TestWithdrawalReachesWhomTheServerDoesNotTalkTo(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fail func(*fakeServer)
		code livepatch.Code
	}{
		"machine removed": {func(s *fakeServer) { clear(s.machines) }, livepatch.CodeUnauthorized},
		"answers lost":    {func(s *fakeServer) { s.lose = true }, livepatch.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			b.refresh()
			b.repo.Withdraw(kerneltest.Running().Target(), version(1), "it eats files")
			b.srv.set(tc.fail)
			_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{})
			wantError(t, err, tc.code, "")
			b.wantRunning()
			b.wantProblem(tc.code, "")
			b.orderly()
			b.boot()
			b.wantRunning()
		})
	}
}

// TestKeptWithdrawalIsObeyedAtStart: the daemon was killed between hearing of it and
// obeying, and comes back without a network.
func TestKeptWithdrawalIsObeyedAtStart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.repo.Withdraw(kerneltest.Running().Target(), version(1), "it eats files")
	b.ok(b.a.lock(t.Context()))
	b.ok(b.a.refreshStream(t.Context()))
	b.a.unlock()
	b.srv.down = true
	b.wantRunning(moduleName(1))
	b.boot()
	b.wantRunning()
}

func TestGoingBackNeedsAWithdrawal(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.publish(2)
	b.refresh()
	b.wantRunning(moduleName(2))
	b.repo.Withdraw(kerneltest.Running().Target(), version(2), "bad")
	b.srv.offer(version(1))
	b.refresh()
	b.wantRunning(moduleName(1))
}

// TestServerOrdersUnload: the server's word alone takes no fix out; with the
// operator's signature it is done, and reported under the grant.
func TestServerOrdersUnload(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.srv.give(&livepatch.Grant{ID: "alone", Action: livepatch.ActionUnload, Expires: time.Now().Add(time.Minute), Reason: "trust me"})
	b.refresh()
	b.wantRunning(moduleName(1))
	b.wantProblem(livepatch.CodeMetadata, "said to unload livepatch 1.1, but the signed catalogue does not withdraw it")
	if r, _ := b.srv.report(livepatch.ReportFailed); r.Grant != "alone" || r.Code != livepatch.CodeMetadata {
		t.Errorf("the server was told %+v", r)
	}
	b.repo.Withdraw(kerneltest.Running().Target(), version(1), "operator said so")
	b.srv.give(&livepatch.Grant{ID: "off", Action: livepatch.ActionUnload, Expires: time.Now().Add(time.Minute), Reason: "operator said so"})
	b.refresh()
	b.wantRunning()
	if r, _ := b.srv.report(livepatch.ReportUnloaded); r.Grant != "off" || r.Detail != "operator said so" {
		t.Errorf("the server was told %+v", r)
	}
}

func TestWithdrawnPatchThatCannotGoNeedsAReboot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.publish(1)
		b.refresh()
		b.kern.HoldRemove(kernel.Task{PID: 9, TID: 9, Comm: "raidd"})
		b.repo.Withdraw(kerneltest.Running().Target(), version(1), "bad")
		b.refresh()
		b.refresh()
		b.wantProblem(livepatch.CodeStuck, "Reboot this machine")
		b.wantProblem(livepatch.CodeStuck, "raidd (9)")
		if got := b.srv.kinds(); !slices.Equal(got, []livepatch.ReportKind{livepatch.ReportApplied, livepatch.ReportFailed}) {
			t.Errorf("the server was told %v", got)
		}
		b.kern.HoldRemove()
		b.orderly()
		b.boot()
		b.wantRunning()
	})
}

func TestUnloadByHandHoldsUntilRefresh(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	r, err := b.a.unload(t.Context())
	b.ok(err)
	if !slices.Equal(r.Unloaded, []string{moduleName(1)}) || !strings.Contains(r.Note, "livepatch refresh") {
		t.Errorf("answer is %+v", r)
	}
	b.srv.offer(version(1))
	b.ok(b.a.lock(t.Context()))
	b.ok(b.a.check(t.Context())) // as the clock does
	b.a.unlock()
	b.wantRunning()
	b.wantProblem(livepatch.CodeConflict, "unloaded by hand")
	b.refresh()
	b.wantRunning(moduleName(1))
}

func TestDisableKeepsThePatchAndForgetsTheRest(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	r, err := b.a.disable(t.Context())
	b.ok(err)
	if !r.WasEnabled || !slices.Equal(r.Loaded, []string{moduleName(1)}) || r.Note != "" {
		t.Errorf("answer is %+v", r)
	}
	b.wantRunning(moduleName(1))
	if len(b.srv.machines) != 0 {
		t.Error("the seat is still taken")
	}
	b.boot()
	_, err = b.a.statusNow(time.Now())
	wantError(t, err, livepatch.CodeNotEnabled, "Machine is not enabled")
	r, err = b.a.disable(t.Context())
	if err != nil || r.WasEnabled {
		t.Errorf("the second time: %+v, %v", r, err)
	}
	b.srv.down = true
	b.srv.down = false
	b.enable()
	b.srv.down = true
	if r, err = b.a.disable(t.Context()); err != nil || !strings.Contains(r.Note, "server was not told") {
		t.Errorf("without the server: %+v, %v", r, err)
	}
}

func TestStatusShowsATransitionWhileItRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.publish(1)
		b.kern.TransitionTime(10 * time.Second)
		b.running()
		time.Sleep(2 * time.Second)
		if s := b.status(); s.Status[0].Livepatch.State != livepatch.StateApplying {
			t.Errorf("state is %s during the transition", s.Status[0].Livepatch.State)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if s := b.status(); s.Status[0].Livepatch.State != livepatch.StateApplied {
			t.Errorf("state is %s after the transition", s.Status[0].Livepatch.State)
		}
	})
}
