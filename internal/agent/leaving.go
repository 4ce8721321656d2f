package agent

import (
	"context"
	"time"

	"livepatch"
)

// lookPause is how long to wait between two looks at a transition that did not end
// in its time.
const lookPause = time.Minute

// leaving tells that a transition of this boot did not end in its time and is looked
// at again.
func (a *Agent) leaving() bool {
	j := a.journal
	return j != nil && j.BootID == a.facts.BootID && j.Phase == phaseTransition
}

// lookAgain settles an attempt whose taking back did not end in its time, once the
// kernel is done with it. It never waits for the transition. It returns true when
// there is news for the server.
func (a *Agent) lookAgain(ctx context.Context) (news bool) {
	if !a.leaving() {
		return false
	}
	j := a.journal
	p, err := a.o.Kernel.Patch(j.Module)
	switch {
	case livepatch.CodeOf(err) == livepatch.CodeNotFound, err == nil && !p.Enabled && !p.Transition:
	case err != nil:
		a.note(areaMachine, err)
		return false
	case p.Transition:
		return false
	default:
		// Whoever turned it round: it is in force, so it is guarded like any other.
		return a.finish(ctx) == nil
	}
	if err := a.o.Kernel.Remove(ctx, j.Module); err != nil {
		a.noteApply(j.Version, err)
		return false
	}
	a.o.Log.Info("taken back at last", "version", j.Version, "module", j.Module)
	a.noteApply(j.Version, livepatch.Errorf(livepatch.CodeStuck, "livepatch %s was taken back, because its transition did not end in time; it is tried again when the server grants it", j.Version))
	_ = a.rewind(j.Before, nil)
	return true
}

// onItsWayOut tells that the journalled patch is being taken back, so that waiting
// for it to be in force would be in vain.
func (a *Agent) onItsWayOut() bool {
	p, err := a.o.Kernel.Patch(a.journal.Module)
	return err == nil && !p.Enabled
}
