package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// publishPatch publishes version major.1 and returns its rollout, which has begun.
func (f *fixture) publishPatch(t testing.TB, major uint32, policy string) api.Rollout {
	t.Helper()
	ctx := t.Context()
	cat := livepatch.Catalogue{Kernel: kernel.Target()}
	for n := range major {
		cat.Patches = append(cat.Patches, patch(n+1))
	}
	p := store.PendingPublication{ID: fmt.Sprintf("publication-%d", major), Actor: "operator ann", Policy: policy}
	_, err := f.BeginPublication(ctx, p)
	must(t, err)
	must(t, f.CompletePublication(ctx, p, []livepatch.Catalogue{cat}))
	all, err := f.Rollouts(ctx, kernel.Release)
	must(t, err)
	for _, r := range all {
		if r.Version.Major == major {
			return r
		}
	}
	t.Fatalf("livepatch %d.1 has no rollout", major)
	panic("unreachable")
}

// granting returns a rule that grants version 1.1 under a rollout that moves.
func granting(id string) store.Decide {
	return func(f store.Facts) store.Decision {
		for _, c := range f.Candidates {
			if c.Rollout.ID == id && c.Rollout.State.Moving() && !c.Rollout.Paused {
				return store.Decision{Action: livepatch.ActionApply, Version: c.Rollout.Version, Rollout: id, Expires: f.Now.Add(10 * time.Minute)}
			}
		}
		return store.Decision{Reason: "not now"}
	}
}

func TestHaltMakesOpenGrantsVoid(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	r := f.publishPatch(t, 1, "everybody")
	id := f.enrol(t, 1)
	out, err := f.CheckIn(ctx, id, checkIn("b1"), granting(r.ID))
	must(t, err)
	first := out.Grant
	if first == nil {
		t.Fatal("no grant to begin with")
	}
	change, err := f.HaltRollout(ctx, "judge", r.ID, "it oopses", nil)
	must(t, err)
	if change == nil || change.To != rollout.Halted {
		t.Fatalf("the halt is %+v", change)
	}
	again, err := f.HaltRollout(ctx, "operator ann", r.ID, "it does", nil)
	if err != nil || again != nil {
		t.Errorf("a second halt changed %+v (%v)", again, err)
	}
	if out, err = f.CheckIn(ctx, id, checkIn("b1"), granting(r.ID)); err != nil || out.Grant != nil {
		t.Errorf("after the halt the machine still has grant %+v (%v)", out.Grant, err)
	}
	_, err = f.OperateRollout(ctx, "operator ann", r.ID, "resume", "false alarm")
	must(t, err)
	if out, err = f.CheckIn(ctx, id, checkIn("b1"), granting(r.ID)); err != nil || out.Grant == nil || out.Grant.ID == first.ID {
		t.Errorf("after the resume the machine has grant %+v (%v), want a new one", out.Grant, err)
	}
	lines, err := f.Audit(ctx, 100)
	must(t, err)
	halts := 0
	for _, l := range lines {
		if l.Action == "rollout.halt" {
			halts++
			if l.Actor != "judge" || !strings.Contains(l.Detail, "it oopses") || !strings.Contains(l.Detail, "made void: 1") {
				t.Errorf("the halt in the audit log is %+v", l)
			}
		}
	}
	if halts != 1 {
		t.Errorf("two halts are %d lines in the audit log, want one", halts)
	}
}

func TestPauseMakesOpenGrantsVoid(t *testing.T) {
	t.Parallel()
	f := open(t)
	r := f.publishPatch(t, 1, "everybody")
	id := f.enrol(t, 1)
	out, err := f.CheckIn(t.Context(), id, checkIn("b1"), granting(r.ID))
	must(t, err)
	_, err = f.OperateRollout(t.Context(), "operator ann", r.ID, "pause", "lunch")
	must(t, err)
	_, err = f.OperateRollout(t.Context(), "operator ann", r.ID, "resume", "back")
	must(t, err)
	again, err := f.CheckIn(t.Context(), id, checkIn("b1"), granting(r.ID))
	must(t, err)
	if again.Grant == nil || again.Grant.ID == out.Grant.ID {
		t.Errorf("the grant from before the pause is %+v, and after it %+v", out.Grant, again.Grant)
	}
}

func TestWithdrawalEndsTheRollout(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	r := f.publishPatch(t, 1, "default")
	cat := livepatch.Catalogue{Kernel: kernel.Target(), Patches: []livepatch.Livepatch{patch(1)}}
	cat.Patches[0].Withdrawn = &livepatch.Withdrawal{At: f.clock.now(), Reason: "it panics"}
	p := store.PendingPublication{ID: "withdrawal", Actor: "operator ann"}
	_, err := f.BeginPublication(ctx, p)
	must(t, err)
	must(t, f.CompletePublication(ctx, p, []livepatch.Catalogue{cat}))
	got, err := f.Rollout(ctx, r.ID)
	must(t, err)
	if got.State != rollout.Withdrawn || got.Reason != "it panics" || got.Changes[len(got.Changes)-1].Actor != "operator ann" {
		t.Errorf("after the withdrawal the rollout is %+v", got)
	}
	if got.Commitment == "" || len(got.Key) != rollout.KeySize {
		t.Error("the key of the draws stays secret after the end")
	}
	_, err = f.OperateRollout(ctx, "operator ann", r.ID, "resume", "no")
	wantCode(t, err, livepatch.CodeConflict, "withdrawn")
}

func TestRolloutKeepsItsPolicy(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	p := rollout.DefaultPolicy()
	r := f.publishPatch(t, 1, "default")
	p.Watch = rollout.Duration(time.Hour)
	_, err := f.SetPolicy(ctx, "operator ann", p)
	must(t, err)
	old, err := f.Rollout(ctx, r.ID)
	must(t, err)
	next := f.publishPatch(t, 2, "default")
	if old.Policy.Version != 1 || old.Policy.Watch == p.Watch || next.Policy.Version != 2 || next.Policy.Watch != p.Watch {
		t.Errorf("the first follows version %d, the second version %d", old.Policy.Version, next.Policy.Version)
	}
}

func TestPlanIsForOneModule(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	v := livepatch.Version{Major: 1, Minor: 1}
	must(t, f.PlanRollout(ctx, "operator ann", kernel.Target(), v, api.Plan{Module: "of-somebody-else", Expedite: true, Reason: "exploited"}))
	if r := f.publishPatch(t, 1, "default"); r.Expedited || r.State != rollout.Canary {
		t.Errorf("a plan for another module made it %s", r.State)
	}
	err := f.PlanRollout(ctx, "operator ann", kernel.Target(), v, api.Plan{Module: "late"})
	wantCode(t, err, livepatch.CodeConflict, "public already")
}

// TestPendingGrantsAreCountedInTheTransaction has two machines ask for one place at a time.
func TestPendingGrantsAreCountedInTheTransaction(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	p := rollout.DefaultPolicy()
	p.Stages = []rollout.Stage{{Tier: livepatch.TierGeneral, Share: 100, Concurrency: rollout.Limit{Machines: 1}}}
	_, err := f.SetPolicy(ctx, "operator ann", p)
	must(t, err)
	r := f.publishPatch(t, 1, "default")
	one, two := f.enrol(t, 1), f.enrol(t, 2)
	seen := map[string]int{}
	ask := func(id string) {
		t.Helper()
		rule := granting(r.ID)
		_, err := f.CheckIn(ctx, id, checkIn("b1"), func(facts store.Facts) store.Decision {
			seen[id] = facts.Candidates[0].Progress.Pending
			if seen[id] > 0 {
				return store.Decision{Reason: "wait"}
			}
			return rule(facts)
		})
		must(t, err)
	}
	ask(one)
	ask(one)
	if seen[one] != 0 {
		t.Error("a machine waits for its own grant")
	}
	ask(two)
	if seen[two] != 1 {
		t.Errorf("the second machine sees %d pending grants, want 1", seen[two])
	}
	f.clock.advance(time.Duration(p.Watch) + time.Second)
	ask(two)
	if seen[two] != 0 {
		t.Errorf("after the watch the second machine sees %d pending grants", seen[two])
	}
}

func TestQuietJudgementWritesNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := context.Background()
	r := f.publishPatch(t, 1, "everybody")
	f.enrol(t, 1)
	calls := 0
	weigh := func(e store.Evidence) store.Judgement {
		calls++
		return store.Judgement{Rollout: e.Rollout, Judge: e.Judge, Progress: rollout.Progress{Fleet: len(e.Fleet)}}
	}
	_, err := f.JudgeRollout(ctx, r.ID, weigh)
	must(t, err)
	count := commits(t, f.path)
	before := count()
	_, err = f.JudgeRollout(ctx, r.ID, weigh)
	must(t, err)
	if count() != before || calls != 3 {
		t.Errorf("a look that found nothing new wrote something, after %d calls", calls)
	}
}
