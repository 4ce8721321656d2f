package server

import (
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

func TestOperatorsVerbs(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 10, 0)
	ctx := t.Context()
	one := livepatch.Version{Major: 1, Minor: 1}
	must(t, f.operator.PlanRollout(ctx, kernel.Target(), one, api.Plan{Module: digest("one"), Hold: true}))
	lp := f.publish(t, kernel, "one")
	if lp.Version != one {
		t.Fatalf("published as %s", lp.Version)
	}
	id := f.only().ID
	do := func(verb, reason string, want livepatch.Code, state rollout.State) {
		t.Helper()
		_, err := f.operator.Operate(ctx, id, verb, reason)
		if livepatch.CodeOf(err) != want {
			t.Errorf("%s: %v, want code %q", verb, err, want)
		}
		if r := f.only(); r.State != state {
			t.Errorf("after %s it is %s, want %s", verb, r.State, state)
		}
	}
	do("pause", "why not", livepatch.CodeConflict, rollout.Staged)
	do("start", "", "", rollout.Canary)
	do("pause", "", livepatch.CodeInvalid, rollout.Canary)
	do("pause", "lunch", "", rollout.Canary)
	if out := f.checkIn(f.machines[0]); out.Grant != nil || !strings.Contains(out.Reason, "lunch") {
		t.Errorf("while paused a machine is told %+v", out)
	}
	do("resume", "back", "", rollout.Canary)
	do("promote", "it is fine", "", rollout.Early)
	do("halt", "it is not", "", rollout.Halted)
	do("halt", "again", "", rollout.Halted)
	f.wantAudit("rollout.halt", "operator ann")
	do("resume", "was the rack's power", "", rollout.Early)
	do("expedite", "exploited in the wild", "", rollout.General)
	do("dance", "x", livepatch.CodeInvalid, rollout.General)
	if out := f.checkIn(f.machines[0]); out.Grant == nil {
		t.Errorf("after the expedition a machine is told %+v", out)
	}
	f.withdraw(t, kernel, one)
	do("resume", "no", livepatch.CodeConflict, rollout.Withdrawn)
	_, err := f.operator.Operate(ctx, "nonsense", "halt", "x")
	wantCode(t, err, livepatch.CodeNotFound)
	h, err := f.operator.PatchHealth(ctx, kernel.Target(), one)
	must(t, err)
	if h.Rollout == nil || h.Rollout.State != rollout.Withdrawn || h.Machines["void"] != 1 {
		t.Errorf("the patch's health is %+v", h)
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	ctx := t.Context()
	all, err := f.operator.Policies(ctx)
	must(t, err)
	if len(all) != 2 || all[0].Name != "default" || all[1].Name != "everybody" {
		t.Errorf("built-in policies are %+v", all)
	}
	p := rollout.DefaultPolicy()
	p.Watch = rollout.Duration(time.Hour)
	next, err := f.operator.SetPolicy(ctx, p)
	must(t, err)
	again, err := f.operator.Policy(ctx, "default")
	must(t, err)
	if next.Version != 2 || again.Version != 2 || again.Watch != p.Watch {
		t.Errorf("changed, it is version %d, then %d", next.Version, again.Version)
	}
	_, err = f.operator.SetPolicy(ctx, p)
	wantCode(t, err, livepatch.CodeConflict, "version 2")
	if same, err := f.operator.SetPolicy(ctx, next); err != nil || same.Version != 2 {
		t.Errorf("unchanged, it is version %d (%v)", same.Version, err)
	}
	p.Version, p.Stages = 2, p.Stages[:2]
	_, err = f.operator.SetPolicy(ctx, p)
	wantCode(t, err, livepatch.CodeInvalid, "general")
	_, err = f.operator.Policy(ctx, "nonsense")
	wantCode(t, err, livepatch.CodeNotFound)
	err = f.operator.PlanRollout(ctx, kernel.Target(), livepatch.Version{Major: 1, Minor: 1}, api.Plan{Module: digest("one"), Policy: "nonsense"})
	wantCode(t, err, livepatch.CodeNotFound, "nonsense")
	err = f.operator.PlanRollout(ctx, kernel.Target(), livepatch.Version{Major: 1, Minor: 1}, api.Plan{Module: digest("one"), Expedite: true})
	wantCode(t, err, livepatch.CodeInvalid, "reason")
}
