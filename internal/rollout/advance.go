package rollout

import (
	"fmt"
	"time"

	"livepatch"
)

// StageChange is one step of a rollout, for the audit log and for people.
type StageChange struct {
	At time.Time `json:"at"`
	// Actor is who did it: an operator's name, or ActorJudge.
	Actor string `json:"actor"`
	// Action is the verb: start, advance, caution, halt, pause, resume, promote,
	// expedite, withdraw.
	Action    string `json:"action"`
	From      State  `json:"from"`
	FromStage int    `json:"from_stage"`
	To        State  `json:"to"`
	ToStage   int    `json:"to_stage"`
	Reason    string `json:"reason"`
	// Assessment is the evidence behind what the judge did; nil for operators.
	Assessment *Assessment `json:"assessment,omitempty"`
}

// ActorJudge is the actor of what happens without a person.
const ActorJudge = "judge"

// healthyNeeded is how many healthy machines the stage wants before the next.
func healthyNeeded(s Stage, p Progress) int {
	return max(min(s.LeastHealthy, (p.Drawn+1)/2), int(s.LeastShare/100*float64(p.Drawn)))
}

// Advance is what happens to r by itself at now: a harmful patch is halted,
// suspicion starts caution, and a stage that has soaked on good reports is
// followed by the next. It returns r as it is then, and the change or nil.
func Advance(r Rollout, j *Judge, p Progress, now time.Time) (Rollout, *StageChange) {
	if !r.State.Moving() {
		return r, nil
	}
	a := j.Assess(&r, p, now)
	if a.Verdict == Harmful {
		next, change := r, r.change(ActorJudge, "halt", a.Summary, now)
		next.State, next.Reason = Halted, a.Summary
		change.To, change.Assessment = Halted, &a
		return next, &change
	}
	if j.Suspected.After(r.CautionSince) {
		next := r
		next.CautionSince = j.Suspected
		a = j.Assess(&next, p, now)
		change := r.change(ActorJudge, "caution", a.Summary, now)
		change.Assessment = &a
		return next, &change
	}
	if r.Paused || a.Verdict != Healthy || r.Stage+1 >= len(r.Policy.Stages) || now.Before(r.SoakedAt()) {
		return r, nil
	}
	if until, _ := r.Policy.FrozenUntil(now); !until.IsZero() {
		return r, nil
	}
	next, change := r.enter(r.Stage+1, ActorJudge, "advance", a.Summary, now)
	change.Assessment = &a
	return next, &change
}

// SoakedAt is when the present stage has soaked, provided that nothing suspicious
// happens.
func (r *Rollout) SoakedAt() time.Time {
	since := r.StageSince
	if r.CautionSince.After(since) {
		since = r.CautionSince
	}
	return since.Add(time.Duration(r.CurrentStage().Soak))
}

// change is a StageChange that changes nothing yet.
func (r *Rollout) change(actor, action, reason string, now time.Time) StageChange {
	return StageChange{At: now, Actor: actor, Action: action, From: r.State, FromStage: r.Stage,
		To: r.State, ToStage: r.Stage, Reason: reason}
}

// enter moves a copy of r to the stage with this index.
func (r Rollout) enter(stage int, actor, action, reason string, now time.Time) (Rollout, StageChange) {
	change := r.change(actor, action, reason, now)
	r.Stage, r.StageSince = stage, now
	r.State = State(r.Policy.Stages[stage].Tier)
	change.To, change.ToStage = r.State, stage
	return r, change
}

// Operate is what an operator does to r with one verb: start, pause, resume, halt,
// promote, expedite or withdraw. All but start want a reason, which goes to the
// audit log. It fails with conflict when the verb does not fit the state. After a
// resume from halted the judge starts anew: the operator has overruled it.
func Operate(r Rollout, verb, actor, reason string, now time.Time) (Rollout, StageChange, error) {
	if reason == "" && verb != "start" {
		return r, StageChange{}, invalid("say why with a reason: it goes to the audit log")
	}
	refuse := func() (Rollout, StageChange, error) {
		return r, StageChange{}, livepatch.Errorf(livepatch.CodeConflict, "rollout %s of livepatch %s is %s: %s does not apply", r.ID, r.Version, r.describe(), verb)
	}
	next, change := r, r.change(actor, verb, reason, now)
	switch verb {
	case "start":
		if r.State != Staged {
			return refuse()
		}
		next, change = r.enter(0, actor, verb, reason, now)
	case "pause":
		if !r.State.Moving() || r.Paused {
			return refuse()
		}
		next.Paused, next.Reason = true, reason
	case "resume":
		if !r.Paused && r.State != Halted {
			return refuse()
		}
		next.Paused, next.Reason = false, ""
		if r.State == Halted && r.StageSince.IsZero() {
			next.State = Staged
		} else if r.State == Halted {
			next.CautionSince = time.Time{}
			next, change = next.enter(r.Stage, actor, verb, reason, now)
		}
	case "halt":
		if !r.State.Moving() && r.State != Staged {
			return refuse()
		}
		next.State, next.Reason = Halted, reason
	case "promote":
		if !r.State.Moving() || r.Stage+1 >= len(r.Policy.Stages) {
			return refuse()
		}
		next, change = r.enter(r.Stage+1, actor, verb, reason, now)
	case "expedite":
		if (!r.State.Moving() && r.State != Staged) || r.Expedited {
			return refuse()
		}
		next, change = r.enter(len(r.Policy.Stages)-1, actor, verb, reason, now)
		next.Expedited = true
	case "withdraw":
		if r.State == Withdrawn {
			return refuse()
		}
		next.State, next.Reason = Withdrawn, reason
	default:
		return r, StageChange{}, invalid("%q is not one of start, pause, resume, halt, promote, expedite, withdraw", verb)
	}
	change.To = next.State
	return next, change, nil
}

// describe is the state for people.
func (r *Rollout) describe() string {
	if r.Paused && r.State.Moving() {
		return fmt.Sprintf("%s (paused)", r.State)
	}
	return string(r.State)
}
