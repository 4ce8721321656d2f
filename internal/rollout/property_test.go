package rollout_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livepatch"
	"livepatch/internal/rollout"
)

// aRollout draws a rollout in any stage of the default policy.
func aRollout(t *rapid.T) rollout.Rollout {
	key := rapid.SliceOfN(rapid.Byte(), rollout.KeySize, rollout.KeySize).Draw(t, "key")
	r, err := rollout.New("r1", kernel.Target(), version(1), rollout.DefaultPolicy(), key)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err = rollout.Operate(r, "start", "op", "", noon)
	if err != nil {
		t.Fatal(err)
	}
	for range rapid.IntRange(0, len(r.Policy.Stages)-1).Draw(t, "stage") {
		if r, _, err = rollout.Operate(r, "promote", "op", "test", noon); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func aMachine(t *rapid.T) rollout.Machine {
	return rollout.Machine{
		ID:     fmt.Sprintf("m%d", rapid.IntRange(0, 1<<20).Draw(t, "machine")),
		Plan:   rapid.SampledFrom([]string{"community", "essential", "standard", "advanced"}).Draw(t, "plan"),
		OptIn:  rapid.SampledFrom([]livepatch.Tier{"", "canary", "early", "general"}).Draw(t, "opt in"),
		Kernel: kernel,
	}
}

func ask(m rollout.Machine, r *rollout.Rollout, p rollout.Progress, now time.Time) rollout.Answer {
	return rollout.Decide(m, []rollout.Candidate{{Rollout: r, BuildIDs: []string{kernel.BuildID}, Progress: p}}, now).Answer
}

// TestDrawnStaysDrawn: whoever is granted in one stage would be in each later one.
func TestDrawnStaysDrawn(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r, m := aRollout(t), aMachine(t)
		granted := ask(m, &r, rollout.Progress{}, noon) == rollout.Grant
		for r.Stage+1 < len(r.Policy.Stages) {
			next, _, err := rollout.Operate(r, "promote", "op", "test", noon)
			if err != nil {
				t.Fatal(err)
			}
			now := ask(m, &next, rollout.Progress{}, noon) == rollout.Grant
			if granted && !now {
				t.Fatalf("%+v is granted in stage %d and not in stage %d", m, r.Stage, next.Stage)
			}
			r, granted = next, now
		}
		if !granted {
			t.Fatalf("%+v is not granted in the last stage", m)
		}
	})
}

func TestPaidOnlyInGeneral(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r, m := aRollout(t), aMachine(t)
		if m.Plan == rollout.PlanCommunity || r.State == rollout.General || ask(m, &r, rollout.Progress{}, noon) != rollout.Grant {
			return
		}
		if m.OptIn != livepatch.TierCanary && m.OptIn != livepatch.Tier(r.State) {
			t.Fatalf("%+v is granted in %s", m, r.State)
		}
	})
}

// TestNeverGrants: what is halted, withdrawn, paused, staged, frozen or at its
// limit grants nothing to anybody, and open grants of the first three are void.
func TestNeverGrants(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		r, m := aRollout(t), aMachine(t)
		p := rollout.Progress{Fleet: 1000, Healthy: rapid.IntRange(0, 1000).Draw(t, "healthy")}
		why := rapid.SampledFrom([]string{"halt", "withdraw", "pause", "stage", "freeze", "limit"}).Draw(t, "why")
		switch why {
		case "halt", "withdraw", "pause":
			var err error
			if r, _, err = rollout.Operate(r, why, "op", "test", noon); err != nil {
				t.Fatal(err)
			}
			if r.Usable(noon.Add(time.Hour), noon) {
				t.Fatalf("a grant can be used after %s", why)
			}
		case "stage":
			r.State = rollout.Staged
		case "freeze":
			r.Policy.Freeze = []rollout.Freeze{{Since: noon.Add(-time.Hour), Until: noon.Add(time.Hour)}}
		case "limit":
			p.Pending = r.PendingLimit(p, noon)
		}
		if got := ask(m, &r, p, noon); got == rollout.Grant {
			t.Fatalf("%s, and still granted", why)
		}
	})
}

// TestDrawIsUniform: the shares are what they say, on any key.
func TestDrawIsUniform(t *testing.T) {
	t.Parallel()
	const n = 20_000
	d := rollout.NewDrawer(make([]byte, rollout.KeySize), "r1")
	var below [3]int
	shares := [3]float64{1, 10, 60}
	for i := range n {
		id := fmt.Sprintf("m%d", i)
		v := d.Draw(id)
		if v < 0 || v >= 100 || i%1000 == 0 && v != rollout.Draw(make([]byte, rollout.KeySize), "r1", id) {
			t.Fatalf("draw of %s is %g", id, v)
		}
		for j, s := range shares {
			if v < s {
				below[j]++
			}
		}
	}
	for j, s := range shares {
		if want := s / 100 * n; float64(below[j]) < 0.8*want || float64(below[j]) > 1.2*want {
			t.Errorf("%d of %d machines are drawn at %g %%", below[j], n, s)
		}
	}
}

// TestDrawNeedsTheKey: another key or rollout draws other machines.
func TestDrawNeedsTheKey(t *testing.T) {
	t.Parallel()
	zero, one := make([]byte, rollout.KeySize), append(make([]byte, rollout.KeySize-1), 1)
	a := rollout.Draw(zero, "r1", "m1")
	if a == rollout.Draw(one, "r1", "m1") || a == rollout.Draw(zero, "r2", "m1") {
		t.Error("the draw does not depend on the key and the rollout")
	}
}

// TestKeyIsRevealedAtTheEnd: while a stage draws, nobody is shown the key; then
// everybody is, and it is the one that was committed to.
func TestKeyIsRevealedAtTheEnd(t *testing.T) {
	t.Parallel()
	r := started(t, nil)
	committed := r.Commitment()
	if len(committed) != 64 || r.Public().Key != nil {
		t.Errorf("commitment %q, key %x shown in %s", committed, r.Public().Key, r.State)
	}
	r, _, err := rollout.Operate(r, "expedite", "op", "test", noon)
	if err != nil {
		t.Fatal(err)
	}
	if end := r.Public(); end.Key == nil || end.Commitment() != committed {
		t.Errorf("key %x shown in %s", end.Key, end.State)
	}
}

// TestEvidenceIsANumber: whatever counts a database comes up with, the evidence
// stays a number that is not negative.
func TestEvidenceIsANumber(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		j := rollout.NewJudge(rollout.Judging{})
		for range rapid.IntRange(1, 50).Draw(t, "events") {
			count := rapid.IntRange(-2, 1<<30)
			e := rollout.Event{Kind: rapid.SampledFrom([]rollout.Harm{rollout.Crash, rollout.Warn, rollout.Silence, "odd"}).Draw(t, "kind"),
				At: noon, Stratum: where, Signature: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "signature"),
				Patched: rapid.Bool().Draw(t, "patched"), Age: rollout.Duration(rapid.Int64().Draw(t, "age"))}
			for range rapid.IntRange(0, 5).Draw(t, "risks") {
				r := rollout.Risk{Online: count.Draw(t, "online")}
				for w := range r.Within {
					r.Within[w] = count.Draw(t, "within")
				}
				e.Risks = append(e.Risks, r)
			}
			j.Observe(e)
			if v := j.Evidence(); !(v >= 0) || math.IsInf(v, 0) {
				t.Fatalf("evidence is %g after %+v", v, e)
			}
		}
	})
}
