package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

func TestQueueOfReportsIsBounded(t *testing.T) {
	t.Parallel()
	var m memory
	m.queue(livepatch.Report{ID: "bad", Kind: livepatch.ReportOopsed})
	for i := range 2 * maxReports {
		m.queue(livepatch.Report{ID: fmt.Sprint(i), Kind: livepatch.ReportHealthy})
		m.queue(livepatch.Report{ID: fmt.Sprint(i), Kind: livepatch.ReportHealthy})
	}
	if len(m.Reports) != maxReports || m.Reports[0].ID != "bad" || m.Reports[maxReports-1].ID != fmt.Sprint(2*maxReports-1) {
		t.Errorf("%d reports, first %q, last %q", len(m.Reports), m.Reports[0].ID, m.Reports[maxReports-1].ID)
	}
	m.acknowledge([]string{"bad", "never sent"})
	if len(m.Reports) != maxReports-1 {
		t.Errorf("%d reports after one was acknowledged", len(m.Reports))
	}
}

func TestDamagedStateIsNamed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{identityFile, journalFile} {
		b := newBench(t)
		b.ok(os.WriteFile(b.a.dir.file(name), []byte("{\"a\":"), 0o600))
		_, err := New(b.o)
		wantError(t, err, livepatch.CodeDisk, name+" is damaged")
	}
}

// TestDamagedMemoryIsSetAside: the daemon works on, says so until somebody has seen
// it, and keeps the file.
func TestDamagedMemoryIsSetAside(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	damaged := []byte("{\"suspects\":[{\"version\":\"9.1\"}],")
	b.ok(os.WriteFile(b.a.dir.file(stateFile), damaged, 0o600))
	b.orderly()
	b.boot()
	b.wantRunning()
	b.wantProblem(livepatch.CodeDisk, "state.json was damaged")
	kept, err := os.ReadFile(b.a.dir.file(stateFile + ".damaged"))
	if err != nil || string(kept) != string(damaged) {
		t.Errorf("kept is %q, %v", kept, err)
	}
	b.srv.offer(version(1))
	b.refresh()
	b.wantRunning(moduleName(1))
	if p := b.status().Problems; len(p) != 0 {
		t.Errorf("problems %v", p)
	}
}

func TestStateIsForRootOnly(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	for name, want := range map[string]os.FileMode{".": 0o700, identityFile: 0o600} {
		info, err := os.Stat(b.a.dir.file(name))
		b.ok(err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", name, info.Mode().Perm(), want)
		}
	}
}

func TestGrantTimeFollowsTheServerNotTheWallClock(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var c serverClock
	c.set(now.Add(-3*time.Hour), now)
	if got := c.at(now.Add(time.Hour).Round(0)); got.Before(now.Add(-2*time.Hour - time.Second)) {
		t.Errorf("after an hour of suspend it is %s at the server", got)
	}
	if got := c.at(now.Add(time.Minute)).Sub(now.Add(-3 * time.Hour)); got != time.Minute {
		t.Errorf("%s passed, want 1m", got)
	}
	if err := c.skew(); !strings.Contains(fmt.Sprint(err), "3h0m0s off") {
		t.Errorf("skew is %v", err)
	}
}

// TestStackedPatchesComeOffFromTheTop: before Linux 5.1 patches stack.
func TestStackedPatchesComeOffFromTheTop(t *testing.T) {
	t.Parallel()
	m := memory{Modules: map[string]livepatch.Version{"a": version(9), "b": version(10)}}
	cat := livepatch.Catalogue{Patches: []livepatch.Livepatch{
		{Version: version(8), Module: livepatch.Module{Name: "c"}, Withdrawn: &livepatch.Withdrawal{Reason: "bad"}},
	}}
	s := plan(planInput{
		catalogue: &cat, memory: &m, loaded: []kernel.Patch{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "foreign"}},
		grant: &livepatch.Grant{Action: livepatch.ActionUnload, Expires: time.Now().Add(time.Hour)}, now: time.Now(),
	})
	if got := strings.Join(s.modules, " "); s.kind != stepUnload || got != "b a c" {
		t.Errorf("step %s unloads %q, want b a c", s.kind, got)
	}
}

// TestWithdrawnInTheMiddleOfAStack: what is below the withdrawn patch stays.
func TestWithdrawnInTheMiddleOfAStack(t *testing.T) {
	t.Parallel()
	cat := livepatch.Catalogue{Patches: []livepatch.Livepatch{
		{Version: version(1), Module: livepatch.Module{Name: "a"}},
		{Version: version(2), Module: livepatch.Module{Name: "b"}, Withdrawn: &livepatch.Withdrawal{Reason: "bad"}},
		{Version: version(3), Module: livepatch.Module{Name: "c"}},
	}}
	s := plan(planInput{catalogue: &cat, memory: &memory{}, loaded: []kernel.Patch{{Name: "a"}, {Name: "b"}, {Name: "c"}}})
	if got := strings.Join(s.modules, " "); s.kind != stepUnload || got != "c b" || s.reason != "bad" {
		t.Errorf("step %s unloads %q (%s), want c b", s.kind, got, s.reason)
	}
}

func TestJitterStaysNearby(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	seen := map[time.Duration]bool{}
	for range 100 {
		d := b.a.spread.about(time.Hour)
		if d < 54*time.Minute || d > 66*time.Minute {
			t.Fatalf("an hour became %s", d)
		}
		seen[d] = true
	}
	if len(seen) < 50 {
		t.Errorf("100 draws gave %d values: machines would act as one", len(seen))
	}
}
