package rollout

import (
	"fmt"
	"slices"
	"time"

	"livepatch"
)

// GrantTTL is how long a grant may be used.
const GrantTTL = 10 * time.Minute

// PlanCommunity is the plan whose machines may be drawn as canaries.
const PlanCommunity = "community"

// Machine is what Decide knows of the machine that asks.
type Machine struct {
	ID string
	// Plan is the account's plan: community, essential, standard or advanced.
	Plan string
	// OptIn is the first tier that the machine's owner asked for; empty for the
	// plan's own. See FirstTier.
	OptIn  livepatch.Tier
	Kernel livepatch.Kernel
	// Running is the version that is loaded, zero for none of ours.
	Running livepatch.Version
	// Busy machines are in a transition and are left alone.
	Busy bool
	// Suspects are the versions that its boot guard will not load again.
	Suspects []livepatch.Version
	// Tried are the versions that failed or got stuck on it; it is not asked to try
	// them again.
	Tried []livepatch.Version
}

// FirstTier is the first tier that a machine can be drawn in. Community machines
// are canaries: that is what their plan costs. Machines of paid plans are in
// general, unless their owner opted in to an earlier tier; opting out again is
// choosing general.
func FirstTier(plan string, optIn livepatch.Tier) livepatch.Tier {
	if plan == PlanCommunity {
		return livepatch.TierCanary
	}
	if tierOrder(optIn) >= 0 {
		return optIn
	}
	return livepatch.TierGeneral
}

// Candidate is a livepatch that a machine could be given, with where its rollout
// stands.
type Candidate struct {
	// Rollout must be read in the transaction that stores the grant: a halt must
	// not slip between.
	Rollout *Rollout
	// BuildIDs are the kernel binaries that the patch is for.
	BuildIDs []string
	// Progress counts what the rollout did so far; it may lag by seconds, except
	// that Pending must not if the concurrency limit is to hold.
	Progress Progress
}

// Progress counts what a rollout did so far.
type Progress struct {
	// Fleet is how many machines of this kernel are enrolled, Eligible how many of
	// them the present tier may draw, Drawn how many of those are drawn.
	Fleet    int `json:"fleet"`
	Eligible int `json:"eligible"`
	Drawn    int `json:"drawn"`
	// Granted is how many machines got a grant at any time.
	Granted int `json:"granted"`
	// Pending is how many grants are younger than Policy.Watch and have not ended
	// in a failure.
	Pending int `json:"pending"`
	// Healthy is how many machines were heard of after their watch, with nothing bad
	// to report.
	Healthy int `json:"healthy"`
}

// Answer is the kind of a Decision.
type Answer string

// The answers.
const (
	// Nothing: the machine has what it can have.
	Nothing Answer = "nothing"
	// Grant: load Decision.Version now.
	Grant Answer = "grant"
	// Wait: there is a patch, and it is not this machine's turn.
	Wait Answer = "wait"
	// Unload: what runs was withdrawn.
	Unload Answer = "unload"
	// Stopped: there is a patch and its rollout was halted.
	Stopped Answer = "halted"
)

// Decision is the answer to a machine.
type Decision struct {
	Answer  Answer            `json:"answer"`
	Version livepatch.Version `json:"version,omitzero"`
	// Rollout is the id of the rollout the decision is about; empty for Nothing.
	Rollout string `json:"rollout,omitempty"`
	// Expires is when a grant ends, or the word to unload; zero for other answers.
	Expires time.Time `json:"expires,omitzero"`
	// Reason is a sentence for the machine's owner; empty for Nothing.
	Reason string `json:"reason,omitempty"`
}

// Decide answers what m may do at now. Candidates are all livepatches of m's
// kernel, in any order. The newest that m is drawn for is granted; while m waits
// for a newer one it gets the newest it can have. What runs is only left for
// something newer, unless it was withdrawn: then for what else there is, and if
// there is nothing, it is unloaded. A halt leaves running patches in place, because
// unloading in a hurry is a risk of its own.
func Decide(m Machine, candidates []Candidate, now time.Time) Decision {
	newest := slices.Clone(candidates)
	slices.SortFunc(newest, func(a, b Candidate) int { return b.Rollout.Version.Compare(a.Rollout.Version) })
	var withdrawn *Rollout
	for _, c := range newest {
		if c.Rollout.State == Withdrawn && c.Rollout.Version == m.Running && c.Rollout.Kernel == m.Kernel.Target() {
			withdrawn = c.Rollout
		}
	}
	first := Decision{Answer: Nothing}
	for _, c := range newest {
		if withdrawn == nil && c.Rollout.Version.Compare(m.Running) <= 0 {
			break
		}
		d := decideOne(m, &c, now)
		if d.Answer == Grant {
			return d
		}
		if first.Answer == Nothing {
			first = d
		}
	}
	if withdrawn != nil {
		return Decision{Answer: Unload, Version: m.Running, Rollout: withdrawn.ID, Expires: now.Add(GrantTTL),
			Reason: because(fmt.Sprintf("Livepatch %s was withdrawn", m.Running), withdrawn.Reason)}
	}
	return first
}

// decideOne answers for one candidate that may take the place of what runs.
func decideOne(m Machine, c *Candidate, now time.Time) Decision {
	r := c.Rollout
	answer := func(a Answer, format string, args ...any) Decision {
		return Decision{Answer: a, Version: r.Version, Rollout: r.ID, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case r.Kernel != m.Kernel.Target() || m.Kernel.BuildID == "" || !slices.Contains(c.BuildIDs, m.Kernel.BuildID):
		return Decision{Answer: Nothing}
	case r.State == Withdrawn:
		return Decision{Answer: Nothing}
	case r.State == Halted:
		return answer(Stopped, "%s", because(fmt.Sprintf("The rollout of livepatch %s was halted", r.Version), r.Reason))
	case slices.Contains(m.Suspects, r.Version):
		return answer(Wait, "Livepatch %s is suspected of a crash of this machine and is not loaded again.", r.Version)
	case slices.Contains(m.Tried, r.Version):
		return answer(Wait, "Livepatch %s could not be applied on this machine before; a newer version will be offered.", r.Version)
	case !r.State.Moving():
		return answer(Wait, "Livepatch %s is staged; its rollout has not begun.", r.Version)
	case r.Paused:
		return answer(Wait, "%s", because(fmt.Sprintf("The rollout of livepatch %s is paused", r.Version), r.Reason))
	case m.Busy:
		return answer(Wait, "A livepatch transition is running on this machine; livepatch %s follows when it has ended.", r.Version)
	}
	if why := notDrawn(m, r); why != "" {
		return answer(Wait, "%s", why)
	}
	if until, reason := r.Policy.FrozenUntil(now); !until.IsZero() && !r.Expedited {
		return answer(Wait, "%s", because(fmt.Sprintf("Rollouts are frozen until %s", until.UTC().Format("2006-01-02 15:04 UTC")), reason))
	}
	if limit := r.PendingLimit(c.Progress, now); limit >= 0 && c.Progress.Pending >= limit {
		return answer(Wait, "Livepatch %s is being tried elsewhere (machines that have not reported yet: %d); this one follows.", r.Version, c.Progress.Pending)
	}
	return Decision{Answer: Grant, Version: r.Version, Rollout: r.ID, Expires: now.Add(GrantTTL),
		Reason: "It is this machine's turn in " + string(r.CurrentStage().Tier) + "."}
}

// because joins a statement and its reason, if there is one, to a sentence.
func because(statement, reason string) string {
	if reason == "" {
		return statement + "."
	}
	return statement + ": " + reason
}

// notDrawn is why m is not drawn into r's stage; empty when it is.
func notDrawn(m Machine, r *Rollout) string {
	stage := r.CurrentStage()
	first := FirstTier(m.Plan, m.OptIn)
	if tierOrder(stage.Tier) < 0 {
		return fmt.Sprintf("The rollout of livepatch %s has no stage.", r.Version)
	}
	if tierOrder(first) > tierOrder(stage.Tier) {
		return fmt.Sprintf("Livepatch %s is proven on %s machines first; this machine is in %s.", r.Version, stage.Tier, first)
	}
	if stage.Share < 100 && Draw(r.Key, r.ID, m.ID) >= stage.Share {
		return fmt.Sprintf("Livepatch %s is proven on %g %% of machines first; this machine's turn comes later.", r.Version, stage.Share)
	}
	return ""
}

// Drawn tells whether m is drawn into r's present stage.
func Drawn(m Machine, r *Rollout) bool { return notDrawn(m, r) == "" }

// PendingLimit is how many grants may be pending at now; -1 for no bound.
func (r *Rollout) PendingLimit(p Progress, now time.Time) int {
	limit := -1
	lower := func(n int) {
		if n >= 0 && (limit < 0 || n < limit) {
			limit = n
		}
	}
	lower(r.CurrentStage().Concurrency.Of(p.Fleet))
	if !r.Expedited {
		lower(r.Policy.Ramp.Of(p.Healthy))
	}
	if r.Cautious(now) {
		lower(r.Policy.Caution.Machines)
	}
	return limit
}

// Cautious tells whether a suspicious report slows the rollout down at now.
func (r *Rollout) Cautious(now time.Time) bool {
	return !r.CautionSince.IsZero() && now.Before(r.CautionSince.Add(time.Duration(r.Policy.Caution.Hold)))
}

// Usable tells whether a machine that holds a grant for r until expires may still
// use it at now. A halt, a pause and a withdrawal make all open grants void.
func (r *Rollout) Usable(expires, now time.Time) bool {
	return r.State.Moving() && !r.Paused && now.Before(expires)
}
