package agent

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// TestGuardTable holds the boot guard's whole decision: phase x how the boot ended
// x same boot or another.
func TestGuardTable(t *testing.T) {
	t.Parallel()
	const before, now = "boot-1", "boot-2"
	type row struct {
		phase   phase
		boot    string // of the journal; the running one is boot-2
		orderly string // boot id in the marker
		crashed bool
		named   bool
		downs   int
		present bool
		died    bool
		tries   int
		want    verdict
	}
	var rows []row
	for _, p := range []phase{phaseLoading, phaseTransition, phaseSoaking} {
		rows = append(rows,
			row{phase: p, boot: before, want: verdictSuspect},
			row{phase: p, boot: before, orderly: before, want: verdictClear},
			row{phase: p, boot: before, orderly: "boot-0", want: verdictSuspect},
			row{phase: p, boot: before, orderly: now, want: verdictSuspect},
			row{phase: p, boot: before, orderly: before, crashed: true, want: verdictSuspect},
			row{phase: p, boot: now, present: true, tries: 1, want: verdictResume},
		)
	}
	rows = append(rows,
		row{phase: phaseHealthy, boot: before, want: verdictClear},
		row{phase: phaseHealthy, boot: before, crashed: true, want: verdictClear},
		row{phase: phaseHealthy, boot: before, crashed: true, named: true, want: verdictSuspect},
		row{phase: phaseHealthy, boot: before, orderly: before, crashed: true, named: true, want: verdictSuspect},
		row{phase: phaseHealthy, boot: before, downs: maxDowns - 1, want: verdictClear},
		row{phase: phaseHealthy, boot: before, downs: maxDowns, want: verdictSuspect},
		row{phase: phaseHealthy, boot: before, downs: maxDowns, crashed: true, want: verdictSuspect},
		row{phase: phaseHealthy, boot: before, downs: maxDowns, orderly: before, want: verdictClear},
		row{phase: phaseHealthy, boot: now, downs: maxDowns, present: true, want: verdictResume},
		row{phase: phaseHealthy, boot: now, present: true, want: verdictResume},
		row{phase: phaseLoading, boot: now, tries: 1, want: verdictAgain},
		row{phase: phaseLoading, boot: now, tries: maxTries, want: verdictSuspect},
		row{phase: phaseLoading, boot: now, tries: 1, died: true, want: verdictSuspect},
		row{phase: phaseLoading, boot: now, tries: 1, died: true, present: true, want: verdictSuspect},
		row{phase: phaseTransition, boot: now, want: verdictClear},
		row{phase: phaseSoaking, boot: now, want: verdictClear},
		row{phase: phaseSoaking, boot: now, died: true, present: true, want: verdictResume},
	)
	for _, r := range rows {
		t.Run(fmt.Sprintf("%+v", r), func(t *testing.T) {
			t.Parallel()
			in := guardInput{
				journal: &journal{BootID: r.boot, Phase: r.phase, Version: version(1), Tries: r.tries},
				bootID:  now, orderly: r.orderly, crashed: r.crashed, named: r.named, downs: r.downs, present: r.present,
			}
			if r.died {
				in.taint = kernel.TaintDied
			}
			got, why := guard(in)
			if got != r.want || (got == verdictSuspect) != (why != "") {
				t.Errorf("verdict %s (%q), want %s", got, why, r.want)
			}
		})
	}
	if got, _ := guard(guardInput{bootID: now}); got != verdictClear {
		t.Errorf("without a journal: %s", got)
	}
}

// TestPanicMakesSuspect: the machine panics while the patch soaks. It comes back
// unpatched and stays so, says so, and takes the next version.
func TestPanicMakesSuspect(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.kern.Crash("cmdline_proc_show+0x1b")
	b.boot()
	b.wantRunning()
	b.wantProblem(livepatch.CodeSuspect, "the kernel crashed while livepatch 1.1 was soaking")

	b.srv.offer(version(1)) // the server does not know yet, or does not care
	s := b.refresh()
	b.wantLoads(moduleName(1)) // once, before the crash
	if s.Status[0].Livepatch.State != livepatch.StateApplyFailed {
		t.Errorf("state is %s", s.Status[0].Livepatch.State)
	}
	r, ok := b.srv.report(livepatch.ReportRebooted)
	if !ok || r.Version != version(1) || r.Signature != "rip:cmdline_proc_show+0x1b" || !strings.Contains(r.Evidence, "Kernel panic") {
		t.Errorf("the server was told %+v", r)
	}
	if last := b.srv.lastCheck(); len(last.Suspects) != 1 || last.Suspects[0] != version(1) || !strings.Contains(last.Problem, "held back") {
		t.Errorf("the server was told suspects %v, problem %q", last.Suspects, last.Problem)
	}
	// Not after the next orderly reboot either.
	b.orderly()
	b.boot()
	b.wantRunning()
	b.wantProblem(livepatch.CodeSuspect, "held back")

	b.publish(2)
	b.refresh()
	b.wantRunning(moduleName(2))
	if p := b.status().Problems; len(p) != 0 {
		t.Errorf("the suspect still shows although a newer version runs: %v", p)
	}
}

// TestOlderPatchRunsBesideASuspect: version 2.1 crashes the machine before it was
// in force, so the boot loads 1.1 and says that 2.1 is held back, until that is
// withdrawn.
func TestOlderPatchRunsBesideASuspect(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.publish(2)
	if !b.killAt("apply:loaded", func() { b.refresh() }) {
		t.Fatal("not killed")
	}
	b.kern.Reboot()
	b.boot()
	b.wantRunning(moduleName(1))
	b.wantProblem(livepatch.CodeSuspect, "livepatch 2.1 is held back")
	b.srv.give(nil)
	b.repo.Withdraw(kerneltest.Running().Target(), version(2), "it crashed machines")
	b.refresh()
	b.wantRunning(moduleName(1))
	if p := b.status().Problems; len(p) != 0 {
		t.Errorf("problems %v after the suspect was withdrawn", p)
	}
}

func TestSuspectIsRetriedWhenAsked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.o.PreviousLog = func(context.Context) string { return "last words" }
	b.boot()
	b.enable()
	b.publish(1)
	b.refresh()
	b.kern.Reboot() // a power cut: no marker, no crash record
	b.boot()
	b.wantRunning()
	b.refresh()
	if r, _ := b.srv.report(livepatch.ReportRebooted); r.Evidence != "last words\n" {
		t.Errorf("evidence is %q", r.Evidence)
	}
	b.srv.offer(version(1))
	before := b.srv.count()
	_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{RetrySuspect: true})
	b.ok(err)
	b.wantRunning(moduleName(1))
	// The server holds it back as well: it is told of the wish, once.
	for i, c := range b.srv.checks[before:] {
		if c.Retry != (i == 0) || c.RetrySuspect != (i == 0) {
			t.Errorf("check %d after the wish: retry %v, retry suspect %v", i, c.Retry, c.RetrySuspect)
		}
	}
}

func TestRebootByHandIsNoCrash(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.srv.down = true
	for range 3 {
		b.orderly()
		b.boot()
		b.wantRunning(moduleName(1))
	}
	b.wantLoads(moduleName(1), moduleName(1), moduleName(1), moduleName(1))
}

func TestHealthyPatchIsNotBlamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.publish(1)
		b.refresh()
		for range 3 {
			time.Sleep(15 * time.Minute)
			b.a.health(time.Now())
		}
		b.kern.Reboot() // the power goes days later
		b.boot()
		b.wantRunning(moduleName(1))
		if len(b.status().Problems) != 0 {
			t.Errorf("problems %v", b.status().Problems)
		}
	})
}

// soak lets the patch that was loaded become a healthy one.
func (b *bench) soak() {
	b.Helper()
	for range 3 {
		time.Sleep(15 * time.Minute)
		b.a.turnOnce(b.Context(), false)
	}
	if b.a.journal == nil || b.a.journal.Phase != phaseHealthy {
		b.Fatalf("the journal says %+v after the soak", b.a.journal)
	}
}

// TestNoCrashLoopAfterTheSoak: a patch that brings the machine down some time after
// its soak does so at most twice, whatever it leaves behind.
func TestNoCrashLoopAfterTheSoak(t *testing.T) {
	t.Parallel()
	named := func(b *bench) { b.kern.Crash("fixed+0x1/0x20 [" + moduleName(1) + "] x") }
	elsewhere := func(b *bench) { b.kern.Crash("tcp_ack+0x1b") }
	power := func(b *bench) { b.kern.Reboot() }
	restarted := func(b *bench) {
		b.kern.Reboot()
		if b.killAt("boot:noted", b.boot) {
			return
		}
		b.Fatal("not killed")
	}
	lasted := func(b *bench) {
		time.Sleep(enough)
		b.a.turnOnce(b.Context(), false)
		b.kern.Reboot()
	}
	for name, tc := range map[string]struct {
		ends []func(*bench)
		held string
	}{
		"a record names the module":     {[]func(*bench){named}, "the kernel crashed in the code of livepatch 1.1"},
		"a record names something else": {[]func(*bench){elsewhere}, ""},
		"once":                          {[]func(*bench){power}, ""},
		"twice":                         {[]func(*bench){power, elsewhere}, "went down 2 times in a row"},
		"killed while counting":         {[]func(*bench){restarted}, ""},
		"a shutdown between":            {[]func(*bench){power, (*bench).orderly, power}, ""},
		"a long time between":           {[]func(*bench){power, lasted}, ""},
		"twice after a shutdown":        {[]func(*bench){(*bench).orderly, power, power}, "went down 2 times in a row"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.enable()
				b.publish(1)
				b.refresh()
				for _, end := range tc.ends {
					b.soak()
					end(b)
					b.boot()
				}
				if tc.held == "" {
					b.wantRunning(moduleName(1))
					return
				}
				b.srv.offer(version(1))
				b.refresh()
				b.wantRunning()
				b.wantProblem(livepatch.CodeSuspect, tc.held)
				if r, _ := b.srv.report(livepatch.ReportRebooted); b.srv.times(livepatch.ReportRebooted) == 1 && r.Code != livepatch.CodeSuspect {
					t.Errorf("the server was told %+v", r)
				}
				b.srv.offer(version(1))
				_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{RetrySuspect: true})
				b.ok(err)
				b.wantRunning(moduleName(1))
				b.soak()
				b.kern.Reboot()
				b.boot()
				if len(tc.ends) > 1 { // no record: it is counted anew
					b.wantRunning(moduleName(1))
				}
			})
		})
	}
}

// TestOopsInInit: the module's init code oopses and takes the daemon with it; the
// service manager starts it again in the same boot.
func TestOopsInInit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	if !b.killAt("apply:journalled", func() { b.refresh() }) {
		t.Fatal("not killed")
	}
	b.kern.Oops("two_init+0x4")
	b.boot()
	b.wantProblem(livepatch.CodeSuspect, "oopsed while livepatch 1.1 was being loaded")
	b.refresh()
	b.wantLoads()
}

// TestKilledAgainAndAgain: the daemon dies at each attempt, nobody knows why.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	for range maxTries {
		if !b.killAt("apply:journalled", func() { b.refresh() }) {
			t.Fatal("not killed")
		}
		b.boot()
	}
	b.wantProblem(livepatch.CodeSuspect, "died 2 times")
	b.refresh()
	b.wantLoads()
}

func TestAtBootNothingIsLoadedThatMustNot(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bench){
		"withdrawn in the cached metadata": func(b *bench) {
			b.kern.HoldRemove(kernel.Task{PID: 7, TID: 7, Comm: "stuck"})
			b.repo.Withdraw(kerneltest.Running().Target(), version(1), "bad")
			b.ok(b.a.lock(b.Context()))
			b.ok(b.a.refreshStream(b.Context()))
			b.a.unlock()
		},
		"another kernel": func(b *bench) {
			k := kerneltest.Running()
			k.Release = "6.1.0-53-cloud-amd64"
			b.kern.Identify(k)
		},
		"another build of the kernel": func(b *bench) {
			k := kerneltest.Running()
			k.BuildID = strings.Repeat("cd", 20)
			b.kern.Identify(k)
		},
		"damaged cache": func(b *bench) {
			b.ok(b.a.dir.write("modules/"+moduleName(1)+".ko", []byte("\x7fELF")))
		},
		"cache gone":  func(b *bench) { b.ok(b.a.dir.remove(moduleDir)) },
		"stream gone": func(b *bench) { b.ok(b.a.dir.remove(streamDir)) },
		"disabled": func(b *bench) {
			_, err := b.a.disable(b.Context())
			b.ok(err)
		},
		"unloaded by hand": func(b *bench) {
			_, err := b.a.unload(b.Context())
			b.ok(err)
		},
		"container since": func(b *bench) { b.kern.Set("run/systemd/container", "lxc\n") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			b.refresh()
			change(b)
			b.orderly()
			b.boot()
			b.wantLoads(moduleName(1)) // before the reboot
			b.wantRunning()
		})
	}
}
