//go:build vm

package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// quick is a policy for a patch that is expected to go all the way, in stages of
// seconds.
func quick() rollout.Policy {
	soak := rollout.Duration(3 * time.Second)
	return rollout.Policy{
		Name: "quick", Version: 1, Watch: rollout.Duration(5 * time.Second),
		Stages: []rollout.Stage{
			{Tier: livepatch.TierCanary, Share: 50, Soak: soak, LeastHealthy: 4},
			{Tier: livepatch.TierEarly, Share: 100, Soak: soak, LeastHealthy: 4},
			{Tier: livepatch.TierGeneral, Share: 100},
		},
	}
}

// careful is a policy under which time alone brings nobody beyond the first canaries
// while a test looks on. A stage that draws nobody is passed at once, so with shares
// that grow in small steps the first canaries are few, and there are some: none of
// four are drawn up to 90 % once in 10,000 rollouts.
//
// A fleet of four compares badly; one crash in the patch's own code is to be enough,
// as docs/rollouts.md has it for small fleets. Stuck attempts alone are not.
func careful() rollout.Policy {
	p := rollout.Policy{
		Name: "careful", Version: 1, Watch: rollout.Duration(time.Hour),
		Judge: rollout.Judging{FalseHalts: 0.02, TolerateStuck: 0.4},
	}
	stage := func(tier livepatch.Tier, share float64) {
		p.Stages = append(p.Stages, rollout.Stage{Tier: tier, Share: share, Soak: rollout.Duration(time.Hour), LeastHealthy: 4})
	}
	for share := 10.0; share <= 90; share += 10 {
		stage(livepatch.TierCanary, share)
	}
	stage(livepatch.TierEarly, 100)
	stage(livepatch.TierGeneral, 100)
	return p
}

// module is version n of the livepatch, made from a file of test/modules.
func module(source string, n int) lab.Module {
	return lab.Module{Source: source, Name: lab.ModuleName(lab.Release, n), Version: n}
}

// good is the livepatch that everybody has after the first rollout.
func good() lab.Module { return module("cmdline", 1) }

// TestRollouts takes one fleet through three rollouts, one after the other: each
// begins with what the one before has left.
func TestRollouts(t *testing.T) {
	f := newFleet(t)
	for _, step := range []struct {
		name string
		run  func(*fleet)
	}{
		{"good patch reaches everybody", (*fleet).goodPatch},
		{"patch that oopses is halted in canary", (*fleet).oopsingPatch},
		{"patch that gets stuck is reversed", (*fleet).stuckPatch},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(f.in(t)) }) {
			return // the next would only repeat the failure
		}
	}
}

func (f *fleet) goodPatch() {
	f.publish(good(), quick())
	r := f.await("1.1", "every machine is healthy with it", func(r api.Rollout) bool {
		return r.State == rollout.General && r.Progress.Healthy == len(f.machines)
	})
	f.each(func(m *machine) error { return m.patched(f.t.Context(), good()) })
	f.keptToDraw(r)
	stage := 0
	for i, c := range r.Changes {
		if c.ToStage != stage || i > 0 && c.FromStage != stage-1 {
			f.t.Errorf("change %d goes from stage %d to %d, want to %d", i, c.FromStage, c.ToStage, stage)
		}
		stage++
		if i == 0 {
			continue
		}
		soak := time.Duration(r.Policy.Stages[c.FromStage].Soak)
		if lasted := c.At.Sub(r.Changes[i-1].At); c.Action == "advance" && lasted < soak {
			f.t.Errorf("stage %d was left after %v, before it had soaked %v", c.FromStage, lasted, soak)
		}
	}
	if stage != len(r.Policy.Stages) {
		f.t.Errorf("%d stages were entered of %d: %+v", stage, len(r.Policy.Stages), r.Changes)
	}
}

// keptToDraw holds the history of a rollout whose key is public against that key.
func (f *fleet) keptToDraw(r api.Rollout) {
	f.t.Helper()
	if len(r.Key) != rollout.KeySize || r.Rollout.Commitment() != r.Commitment {
		f.t.Fatalf("the key %x is not the one that %s was written down for", r.Key, r.Commitment)
	}
	for stage := range r.Policy.Stages {
		if drawn := f.drawn(r.Rollout, stage); stage == 0 || len(drawn) > len(f.drawn(r.Rollout, stage-1)) {
			f.t.Logf("%s: drawn from stage %d on: %s", r.Version, stage+1, names(drawn))
		}
	}
	for _, c := range r.Changes {
		if drawn := f.drawn(r.Rollout, c.FromStage); c.Assessment != nil && c.Assessment.Progress.Granted > len(drawn) {
			f.t.Errorf("in stage %d %d machines had got a grant, and only %s were drawn", c.FromStage+1, c.Assessment.Progress.Granted, names(drawn))
		}
	}
}

func (f *fleet) oopsingPatch() {
	ctx := f.t.Context()
	bad := module("oops", 2)
	f.publish(bad, careful())
	f.await("2.1", "the canaries have loaded it", func(r api.Rollout) bool {
		return r.Progress.Drawn > 0 && r.Assessment != nil && r.Assessment.Tries.Applied == r.Progress.Drawn
	})
	canaries := f.that(func(m *machine) (bool, error) { return m.has(ctx, bad.Name) })
	others := f.without(canaries)
	f.t.Logf("2.1 is on %s", names(canaries))

	// The patched function runs. The reader dies of it; what code it ends with does
	// not matter. Not cat, which would have its output, our pipe, locked for splicing.
	f.eachOf(canaries, func(m *machine) error {
		_, err := m.Run(ctx, guest.Run{Argv: []string{"/bin/sh", "-c", "read line </proc/cmdline"}, Timeout: patience})
		return err
	})
	f.refresh(canaries) // those whose soak is over tell when they ask
	r := f.await("2.1", "it is halted", func(r api.Rollout) bool { return r.State == rollout.Halted })
	f.haltedByJudge(r, canaries)

	// The others ask, and ask in vain.
	f.refresh(others)
	f.untouched(others, bad)
	var health api.PatchHealth
	f.check(f.service.AdminJSON(ctx, &health, "report", "patch-health", lab.Release, "2.1"))
	granted := 0
	for _, n := range health.Machines {
		granted += n
	}
	if granted != len(canaries) {
		f.t.Errorf("the server granted it to %v machines, want %d", health.Machines, len(canaries))
	}

	// Once it is taken back the key of the draw is public, and says who they were.
	_, err := f.service.Admin(ctx, "rollout", "withdraw", lab.Release, "2.1", "--reason", "it oopses")
	f.check(err)
	r = f.await("2.1", "it is withdrawn", func(r api.Rollout) bool { return r.State == rollout.Withdrawn })
	f.keptToDraw(r)
	if drawn := f.drawn(r.Rollout, r.Stage); !slices.Equal(drawn, canaries) {
		f.t.Errorf("loaded by %s, drawn were %s", names(canaries), names(drawn))
	}
	f.each(func(m *machine) error { return m.patched(ctx, good()) })
}

// refresh has the machines ask the server now. The answer that there is nothing for
// them is no failure.
func (f *fleet) refresh(machines []*machine) {
	f.t.Helper()
	f.eachOf(machines, func(m *machine) error {
		out, err := m.sh(f.t.Context(), "livepatch refresh || true")
		f.t.Logf("%s: livepatch refresh: %s", m.name, strings.TrimSpace(out))
		return err
	})
}

// untouched fails the test when one of the machines has ever loaded this module, or
// does not show version 1 any more.
func (f *fleet) untouched(machines []*machine, bad lab.Module) {
	f.t.Helper()
	if len(machines) == 0 {
		f.t.Fatal("there is no machine outside of the canary draw")
	}
	f.eachOf(machines, func(m *machine) error {
		had, err := m.had(f.t.Context(), bad.Name)
		if had {
			f.t.Errorf("%s, which was not drawn, has loaded %s", m.name, bad.Name)
		}
		if err != nil {
			return err
		}
		return m.patched(f.t.Context(), good())
	})
}

// haltedByJudge checks that the halt has its evidence: in which stage, which function
// and which machines.
func (f *fleet) haltedByJudge(r api.Rollout, canaries []*machine) {
	f.t.Helper()
	halt := r.Changes[len(r.Changes)-1]
	if halt.Action != "halt" || halt.Actor != rollout.ActorJudge || halt.From != rollout.Canary || halt.Assessment == nil {
		f.t.Fatalf("the last change is not a halt in canary by the judge: %+v", halt)
	}
	if a := halt.Assessment; a.Verdict != rollout.Harmful || a.Evidence < a.Threshold {
		f.t.Errorf("halted on the verdict %q with evidence %g of %g", a.Verdict, a.Evidence, a.Threshold)
	}
	const signature = "rip:livepatch_cmdline_proc_show+"
	i := slices.IndexFunc(halt.Assessment.Findings, func(found rollout.Finding) bool {
		return found.Kind == rollout.Crash && strings.HasPrefix(found.Signature, signature)
	})
	if i < 0 {
		f.t.Fatalf("no finding has the signature %s: %+v", signature, halt.Assessment.Findings)
	}
	for _, id := range halt.Assessment.Findings[i].Machines {
		if !slices.ContainsFunc(canaries, func(m *machine) bool { return m.id == id || m.name == id }) {
			f.t.Errorf("machine %s is named, which is none of %s", id, names(canaries))
		}
	}
	shown, err := f.service.Admin(f.t.Context(), "rollout", "show", r.ID)
	f.check(err)
	f.t.Logf("rollout show:\n%s", shown)
	for _, word := range []string{"halted", signature, "the patch's own code"} {
		if !strings.Contains(shown, word) {
			f.t.Errorf("rollout show does not tell of %q", word)
		}
	}
}

func (f *fleet) stuckPatch() {
	ctx := f.t.Context()
	f.each(func(m *machine) error {
		_, err := m.sh(ctx, "livepatch config transition-timeout=5s")
		return err
	})
	bad := module("stuck", 3)
	f.publish(bad, careful())
	r := f.await("3.1", "the canaries could not apply it", func(r api.Rollout) bool {
		return r.Progress.Drawn > 0 && r.Assessment != nil && r.Assessment.Tries.Stuck == r.Progress.Drawn
	})
	if r.Assessment.Tries.Applied > 0 || r.Progress.Healthy > 0 || r.State != rollout.Canary {
		f.t.Errorf("it went on: %+v", r)
	}
	canaries := f.that(func(m *machine) (bool, error) { return m.had(ctx, bad.Name) })
	if len(canaries) != r.Progress.Drawn {
		f.t.Errorf("%s tried it, %d were drawn", names(canaries), r.Progress.Drawn)
	}
	f.untouched(f.without(canaries), bad)
	f.eachOf(canaries, func(m *machine) error {
		has, err := m.has(ctx, bad.Name)
		if has {
			f.t.Errorf("%s still has %s", m.name, bad.Name)
		}
		if err != nil {
			return err
		}
		shown, err := f.service.Admin(ctx, "machine", "show", m.name)
		if err != nil {
			return err
		}
		f.t.Logf("machine show %s:\n%s", m.name, shown)
		if !strings.Contains(shown, string(livepatch.ReportStuck)) || !strings.Contains(shown, "kthreadd") {
			f.t.Errorf("machine show %s does not say that kthreadd held it up:\n%s", m.name, shown)
		}
		return m.patched(ctx, good())
	})
}
