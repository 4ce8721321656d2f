package rollout_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// started is a rollout of the default policy that was started at noon.
func started(t *testing.T, change func(*rollout.Policy)) rollout.Rollout {
	t.Helper()
	p := rollout.DefaultPolicy()
	if change != nil {
		change(&p)
	}
	r, err := rollout.New("r1", kernel.Target(), version(1), p, make([]byte, rollout.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	r, _, err = rollout.Operate(r, "start", "op", "", noon)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAdvance(t *testing.T) {
	t.Parallel()
	soak := 2 * time.Hour // of the default policy's first stage
	enough := rollout.Progress{Fleet: 10_000, Eligible: 7000, Drawn: 70, Granted: 70, Healthy: 35}
	harmful := judged(crash("m1", "rip:f+1"), crash("m2", "rip:f+1"))
	suspicious := judged(crash("m1", "rip:f+1"))
	for name, tt := range map[string]struct {
		change   func(*rollout.Rollout)
		judge    *rollout.Judge
		progress rollout.Progress
		after    time.Duration
		want     string // the action; empty for none
		state    rollout.State
	}{
		"soaked and healthy":     {nil, judged(), enough, soak, "advance", rollout.Canary},
		"not soaked":             {nil, judged(), enough, soak - 1, "", rollout.Canary},
		"too few healthy":        {nil, judged(), rollout.Progress{Fleet: 10_000, Drawn: 70, Healthy: 34}, soak, "", rollout.Canary},
		"paused":                 {func(r *rollout.Rollout) { r.Paused = true }, judged(), enough, soak, "", rollout.Canary},
		"frozen":                 {func(r *rollout.Rollout) { r.Policy.Freeze = []rollout.Freeze{{Since: noon, Until: noon.Add(soak + 1)}} }, judged(), enough, soak, "", rollout.Canary},
		"harmful":                {nil, harmful, enough, 0, "halt", rollout.Halted},
		"harmful though paused":  {func(r *rollout.Rollout) { r.Paused = true }, harmful, enough, 0, "halt", rollout.Halted},
		"harmful and expedited":  {func(r *rollout.Rollout) { r.Expedited = true }, harmful, enough, 0, "halt", rollout.Halted},
		"suspicious":             {nil, suspicious, enough, time.Minute, "caution", rollout.Canary},
		"halted already":         {func(r *rollout.Rollout) { r.State = rollout.Halted }, harmful, enough, 0, "", rollout.Halted},
		"last of its tier":       {func(r *rollout.Rollout) { r.Stage = 1 }, judged(), rollout.Progress{Drawn: 350, Healthy: 175}, soak, "advance", rollout.Early},
		"nothing after the last": {func(r *rollout.Rollout) { r.Stage, r.State = 6, rollout.General }, judged(), enough, 99 * time.Hour, "", rollout.General},
	} {
		before := started(t, nil)
		if tt.change != nil {
			tt.change(&before)
		}
		after, change := rollout.Advance(before, tt.judge, tt.progress, noon.Add(tt.after))
		action := ""
		if change != nil {
			action = change.Action
			if change.Reason == "" || change.Assessment == nil || change.Actor != rollout.ActorJudge {
				t.Errorf("%s: the audit log is told %+v", name, change)
			}
		}
		if action != tt.want || after.State != tt.state {
			t.Errorf("%s: %q to %s, want %q to %s", name, action, after.State, tt.want, tt.state)
		}
	}
}

// TestCautionSlowsAndResoaks: a suspicious report leaves few grants, and the stage
// soaks anew; after that the rollout goes on.
func TestCautionSlowsAndResoaks(t *testing.T) {
	t.Parallel()
	r := started(t, nil)
	j := judged(crash("m1", "rip:f+1")) // at noon
	p := rollout.Progress{Fleet: 10_000, Drawn: 70, Healthy: 69}
	if got := r.PendingLimit(p, noon); got <= r.Policy.Caution.Machines {
		t.Fatalf("%d grants may be pending without caution", got)
	}
	at := noon.Add(time.Minute)
	r, change := rollout.Advance(r, j, p, at)
	if change == nil || r.PendingLimit(p, at) != r.Policy.Caution.Machines {
		t.Fatalf("%d grants may be pending after a suspicious report", r.PendingLimit(p, at))
	}
	if r, change = rollout.Advance(r, j, p, noon.Add(2*time.Hour+time.Minute)); change != nil {
		t.Fatalf("advanced in caution: %+v", change)
	}
	if r, change = rollout.Advance(r, j, p, noon.Add(4*time.Hour)); change == nil || r.Stage != 1 {
		t.Errorf("caution over, and still in stage %d", r.Stage)
	}
}

// TestEverybodyIsReached: a harmless patch comes to the last stage, in the order
// of the policy.
func TestEverybodyIsReached(t *testing.T) {
	t.Parallel()
	r, j := started(t, nil), judged()
	var states []rollout.State
	for now := noon; now.Before(noon.Add(72 * time.Hour)); now = now.Add(time.Minute) {
		next, change := rollout.Advance(r, j, rollout.Progress{Fleet: 100, Drawn: 60, Healthy: 60}, now)
		if change != nil {
			states = append(states, change.To)
		}
		r = next
	}
	want := []rollout.State{rollout.Canary, rollout.Early, rollout.Early, rollout.Early, rollout.Early, rollout.General}
	if !slices.Equal(states, want) {
		t.Errorf("passed through %v, want %v", states, want)
	}
}

func TestOperate(t *testing.T) {
	t.Parallel()
	moving := started(t, nil)
	staged := moving
	staged.State, staged.StageSince = rollout.Staged, time.Time{}
	do := func(r rollout.Rollout, verbs ...string) rollout.Rollout {
		for _, v := range verbs {
			var err error
			if r, _, err = rollout.Operate(r, v, "op", "test", noon); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	for name, tt := range map[string]struct {
		from rollout.Rollout
		verb string
		want rollout.State // empty: refused
	}{
		"start":                {staged, "start", rollout.Canary},
		"start twice":          {moving, "start", ""},
		"pause":                {moving, "pause", rollout.Canary},
		"pause twice":          {do(moving, "pause"), "pause", ""},
		"resume":               {do(moving, "pause"), "resume", rollout.Canary},
		"resume what moves":    {moving, "resume", ""},
		"halt":                 {moving, "halt", rollout.Halted},
		"halt before start":    {staged, "halt", rollout.Halted},
		"halt twice":           {do(moving, "halt"), "halt", ""},
		"resume halted":        {do(moving, "promote", "promote", "halt"), "resume", rollout.Early},
		"resume halted staged": {do(staged, "halt"), "resume", rollout.Staged},
		"promote":              {do(moving, "promote"), "promote", rollout.Early},
		"promote staged":       {staged, "promote", ""},
		"promote the last":     {do(moving, "expedite"), "promote", ""},
		"expedite":             {staged, "expedite", rollout.General},
		"expedite halted":      {do(moving, "halt"), "expedite", ""},
		"withdraw":             {moving, "withdraw", rollout.Withdrawn},
		"withdraw halted":      {do(moving, "halt"), "withdraw", rollout.Withdrawn},
		"resume withdrawn":     {do(moving, "withdraw"), "resume", ""},
		"a verb nobody knows":  {moving, "delete", ""},
	} {
		got, change, err := rollout.Operate(tt.from, tt.verb, "anna", "because", noon)
		if tt.want == "" {
			if code := livepatch.CodeOf(err); code != livepatch.CodeConflict && code != livepatch.CodeInvalid {
				t.Errorf("%s: %v, want a refusal", name, err)
			}
			continue
		}
		if err != nil || got.State != tt.want {
			t.Errorf("%s: %s, %v; want %s", name, got.State, err, tt.want)
		}
		if change.Actor != "anna" || change.Reason != "because" || change.From != tt.from.State || change.To != tt.want {
			t.Errorf("%s: the audit log is told %+v", name, change)
		}
	}
	if _, _, err := rollout.Operate(moving, "expedite", "op", "", noon); err == nil || !strings.Contains(err.Error(), "reason") {
		t.Errorf("expedited without a reason: %v", err)
	}
}

// TestExpeditedIgnoresFreeze: a critical fix does not wait for Monday.
func TestExpeditedIgnoresFreeze(t *testing.T) {
	t.Parallel()
	r := started(t, func(p *rollout.Policy) {
		p.Freeze = []rollout.Freeze{{Since: noon.Add(-time.Hour), Until: noon.Add(time.Hour)}}
	})
	m := rollout.Machine{ID: "m1", Plan: "advanced", Kernel: kernel}
	candidates := []rollout.Candidate{{Rollout: &r, BuildIDs: []string{kernel.BuildID}}}
	if d := rollout.Decide(m, candidates, noon); d.Answer != rollout.Wait {
		t.Fatalf("got %+v in canary", d)
	}
	r, _, err := rollout.Operate(r, "expedite", "op", "actively exploited", noon)
	if err != nil {
		t.Fatal(err)
	}
	if d := rollout.Decide(m, candidates, noon); d.Answer != rollout.Grant {
		t.Errorf("got %+v after it was expedited", d)
	}
}
