package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// TestEveryMachineTellsOfCrashes: also one without a livepatch, or with one that is
// long past its soak. The journal accuses nobody.
func TestEveryMachineTellsOfCrashes(t *testing.T) {
	t.Parallel()
	oops := strings.Join(kerneltest.OopsLines("tcp_ack+0x1b"), "\n")
	for name, tc := range map[string]struct {
		patched  bool
		previous string
		crash    func(*bench)
		sign     string
		evidence string
	}{
		"without a livepatch, with pstore": {false, "", func(b *bench) { b.kern.Crash("tcp_ack+0x1b") }, "rip:tcp_ack+0x1b", "Kernel panic"},
		"after the soak, with pstore":      {true, "", func(b *bench) { b.kern.Crash("tcp_ack+0x1b") }, "rip:tcp_ack+0x1b", "Kernel panic"},
		"log of the boot before":           {false, oops, func(b *bench) { b.kern.Reboot() }, "rip:tcp_ack+0x1b", "Call Trace"},
		"no evidence":                      {false, "", func(b *bench) { b.kern.Reboot() }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.o.PreviousLog = func(context.Context) string { return tc.previous }
				b.boot()
				b.enable()
				b.refresh()
				var want livepatch.Version
				if tc.patched {
					b.publish(1)
					b.refresh()
					for range 3 {
						time.Sleep(15 * time.Minute)
						b.a.health(time.Now())
					}
					want = version(1)
				}
				boot := b.a.facts.BootID
				tc.crash(b)
				b.boot()
				b.boot() // the daemon is started again
				b.refresh()
				r, ok := b.srv.report(livepatch.ReportRebooted)
				if !ok || r.Version != want || (r.Module != "") != tc.patched || r.BootID != boot || r.Code != "" {
					t.Errorf("the server was told %+v", r)
				}
				if r.Signature != tc.sign || !strings.Contains(r.Evidence, tc.evidence) || tc.evidence == "" && r.Evidence != "" {
					t.Errorf("signature %q, evidence %q", r.Signature, r.Evidence)
				}
				if n := b.srv.times(livepatch.ReportRebooted); n != 1 {
					t.Errorf("told %d times", n)
				}
				if p := b.status().Problems; len(p) != 0 {
					t.Errorf("the owner is shown %v", p)
				}
			})
		})
	}
}

// times is how many different reports of a kind arrived.
func (s *fakeServer) times(kind livepatch.ReportKind) (n int) {
	for _, k := range s.kinds() {
		if k == kind {
			n++
		}
	}
	return n
}

func TestOrderlyRebootsAreNotTold(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.kern.Reboot() // before the machine is enabled
	b.boot()
	b.enable()
	for range 3 {
		b.orderly()
		b.boot()
		b.refresh()
	}
	if got := b.srv.kinds(); len(got) != 0 {
		t.Errorf("the server was told %v", got)
	}
}

// TestAccusedCrashIsToldOnce: the boot guard reports it, the watch does not again.
func TestAccusedCrashIsToldOnce(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.kern.Crash("two_show+0x5")
	b.boot()
	b.srv.give(nil)
	b.refresh()
	r, _ := b.srv.report(livepatch.ReportRebooted)
	if n := b.srv.times(livepatch.ReportRebooted); n != 1 || r.Code != livepatch.CodeSuspect {
		t.Errorf("told %d times: %+v", n, r)
	}
}

// TestCrashIsToldOnceThoughKilled: kill -9 right after the boot was noted.
func TestCrashIsToldOnceThoughKilled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.refresh()
	b.kern.Reboot()
	if !b.killAt("boot:noted", b.boot) {
		t.Fatal("the point was not reached")
	}
	b.boot()
	b.refresh()
	if n := b.srv.times(livepatch.ReportRebooted); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestAnotherKernelAfterACrash(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.refresh()
	b.kern.Reboot()
	next := kerneltest.Running()
	next.Release = "6.1.0-53-cloud-amd64"
	b.kern.Identify(next)
	b.boot()
	b.refresh()
	if r, ok := b.srv.report(livepatch.ReportRebooted); !ok || r.Kernel != kerneltest.Running().Target() {
		t.Errorf("the server was told %+v, want the kernel that went down", r)
	}
}

// TestEveryMachineTellsOfTrouble: warnings and oopses of a kernel that has no
// livepatch, or one past its soak, each once per boot.
func TestEveryMachineTellsOfTrouble(t *testing.T) {
	t.Parallel()
	for _, patched := range []bool{false, true} {
		t.Run(fmt.Sprint("patched ", patched), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.kern.Warn("before+0x1") // nobody asked
				b.enable()
				var want livepatch.Version
				if patched {
					b.publish(1)
					want = version(1)
				}
				b.running()
				time.Sleep(30 * time.Minute)
				before := len(b.srv.kinds())
				b.kern.Warn("nic_poll+0x7")
				b.kern.Oops("tcp_ack+0x1b")
				checks := b.srv.count()
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				if n := b.srv.count(); n != checks {
					t.Errorf("it woke up %d times for it", n-checks)
				}
				for range 3 { // a driver that always warns, the daemon started again
					time.Sleep(70 * time.Minute)
					b.kern.Warn("nic_poll+0x7")
				}
				synctest.Wait()
				if got := b.srv.kinds()[before:]; !slices.Equal(got, []livepatch.ReportKind{livepatch.ReportWarned, livepatch.ReportOopsed}) {
					t.Errorf("the server was told %v", got)
				}
				w, _ := b.srv.report(livepatch.ReportWarned)
				o, _ := b.srv.report(livepatch.ReportOopsed)
				if w.Signature != "rip:nic_poll+0x7" || o.Signature != "rip:tcp_ack+0x1b" || o.Version != want || w.Version != want || o.Evidence == "" {
					t.Errorf("the server was told %+v and %+v", w, o)
				}
			})
		})
	}
}

// TestBootsOwnWarningIsTold: it comes before the daemon starts, in each boot.
func TestBootsOwnWarningIsTold(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.orderly()
	b.kern.Warn("acpi_init+0x3")
	b.boot() // loads 1.1
	b.refresh()
	if r, ok := b.srv.report(livepatch.ReportWarned); !ok || !r.Version.IsZero() || r.Signature != "rip:acpi_init+0x3" {
		t.Errorf("the server was told %+v; it was before the load", r)
	}
}

// TestFailedAttemptIsNobodysTrouble: what a refused load made the kernel log does
// not count as trouble of a machine without a livepatch.
func TestFailedAttemptIsNobodysTrouble(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.kern.Refuse(22, kerneltest.WarnLines("klp_enable_patch+0x9")...)
	b.refresh()
	b.refresh()
	if got := b.srv.kinds(); !slices.Equal(got, []livepatch.ReportKind{livepatch.ReportFailed}) {
		t.Errorf("the server was told %v", got)
	}
}

func TestTroubleIsRationed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		warn := func(n int) int {
			for i := range n {
				b.kern.Warn(fmt.Sprintf("driver%d+0x%x", time.Now().Unix(), i))
				b.a.look(true)
			}
			return len(b.a.memory.Reports)
		}
		b.a.look(true) // the first look
		if n := warn(2 * maxUnasked); n != maxUnasked {
			t.Errorf("%d reports in a day, want %d", n, maxUnasked)
		}
		time.Sleep(24 * time.Hour)
		if n := warn(1); n != maxUnasked+1 {
			t.Errorf("%d reports a day later, want %d", n, maxUnasked+1)
		}
	})
}

func TestCheckInTellsHardware(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.kern.Set("sys/class/dmi/id/sys_vendor", "QEMU\n")
	b.kern.Set("sys/class/dmi/id/product_name", "Standard PC\n")
	b.enable()
	b.refresh()
	if r := b.srv.lastCheck(); r.Hardware != "QEMU Standard PC" || r.Virt == "" {
		t.Errorf("the server was told hardware %q, virt %q", r.Hardware, r.Virt)
	}
}

// TestHaltWhileTheModuleDownloads: the server calls, and when asked again it grants
// nothing any more, or something else.
func TestHaltWhileTheModuleDownloads(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		happens func(*bench)
		loads   []string
	}{
		"halt":               {func(b *bench) { b.srv.give(nil) }, nil},
		"another version":    {func(b *bench) { b.srv.offer(version(7)) }, nil},
		"the server is away": {func(b *bench) { b.srv.set(func(s *fakeServer) { s.down = true }) }, nil},
		"something else":     {func(*bench) {}, []string{moduleName(1)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.enable()
				b.running()
				b.publish(1)
				once := false
				b.srv.spoil = func(path string, body []byte) []byte {
					if strings.HasPrefix(path, "/stream/archives/") && !once {
						once = true
						b.srv.events <- struct{}{}
						time.Sleep(time.Second) // the event arrives while this is on its way
						tc.happens(b)
					}
					return body
				}
				_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{})
				if err != nil {
					t.Log(err)
				}
				b.wantLoads(tc.loads...)
				if s := b.status(); name == "halt" && len(s.Problems) != 0 {
					t.Errorf("problems %v", s.Problems)
				}
			})
		})
	}
}

// TestOldTroubleIsNotThePatchs: a driver that warned before the load goes on doing so
// while the livepatch soaks. Other machines told of it once, so this one does too.
func TestOldTroubleIsNotThePatchs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.refresh()
		b.kern.Warn("nic_poll+0x7")
		b.publish(1)
		b.running()
		b.kern.Warn("nic_poll+0x7")
		time.Sleep(2 * time.Minute)
		b.kern.Warn("tcp_ack+0x1b")
		time.Sleep(5 * time.Hour)
		b.kern.Warn("tcp_ack+0x1b")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		want := []livepatch.ReportKind{livepatch.ReportWarned, livepatch.ReportApplied, livepatch.ReportHealthy, livepatch.ReportWarned}
		if got := b.srv.kinds(); !slices.Equal(got, want) {
			t.Errorf("the server was told %v, want %v", got, want)
		}
	})
}

// TestOwnCodeIsBlamedAtAnyAge: trouble in the livepatch's code long after its soak is
// shown to the owner as its fault; trouble elsewhere is not.
func TestOwnCodeIsBlamedAtAnyAge(t *testing.T) {
	t.Parallel()
	for where, want := range map[string]livepatch.PatchState{
		"nic_poll+0x7": livepatch.StateApplied,
		"two_show+0x5": livepatch.StateAppliedWithBug,
	} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.enable()
				b.publish(1)
				b.running()
				time.Sleep(24 * time.Hour)
				lines := kerneltest.WarnLines(where)
				if want == livepatch.StateAppliedWithBug {
					lines[2] += " [" + moduleName(1) + "]"
				}
				b.kern.Log(lines...)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				s := b.status()
				blamed := slices.ContainsFunc(s.Problems, func(p localapi.Problem) bool { return p.Code == livepatch.CodeSuspect })
				if s.Status[0].Livepatch.State != want || blamed != (want == livepatch.StateAppliedWithBug) {
					t.Errorf("state %s, problems %v; want %s", s.Status[0].Livepatch.State, s.Problems, want)
				}
			})
		})
	}
}
