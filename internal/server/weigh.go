package server

import (
	"cmp"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// contact is when a machine was last heard of, and until when it may be silent.
type contact struct {
	at    time.Time
	until time.Time
	// connected machines can be told something.
	connected bool
}

// attempt marks that the outcome of a machine's first attempt was weighed.
const attempt rollout.Harm = "attempt"

// weighing is one look at one rollout.
type weighing struct {
	store.Evidence
	heard func(store.Member) contact
	fleet []member
	out   store.Judgement
}

// member is a machine with what follows from when it was heard of.
type member struct {
	*store.Member
	contact
	stratum rollout.Stratum
	slices  []string
	// since is when it was exposed to the patch; zero when it is not.
	since time.Time
}

// online tells whether m could have been heard of at this time.
func (m *member) online(at time.Time) bool { return !at.After(m.until) }

// weigh says what follows from the evidence. It is a function of its arguments.
func weigh(e store.Evidence, heard func(store.Member) contact) store.Judgement {
	w := &weighing{Evidence: e, heard: heard}
	w.out = store.Judgement{Rollout: e.Rollout, Judge: e.Judge}
	w.look()
	w.attempts()
	w.reports()
	w.silences()
	w.healthy()
	w.advance()
	w.free()
	return w.out
}

// look works out who is exposed. Senders of news are taken as they were when it
// happened: leaving them out would make the patched group look smaller than it was.
func (w *weighing) look() {
	senders := map[string]bool{}
	for _, n := range w.News {
		if rollout.HarmOf(n.Kind) != "" {
			senders[n.Machine] = true
		}
	}
	w.fleet = make([]member, len(w.Fleet))
	for i := range w.Fleet {
		m := &w.fleet[i]
		m.Member = &w.Fleet[i]
		m.contact = w.heard(w.Fleet[i])
		m.stratum = rollout.StratumOf(m.Machine, m.Hardware, m.Virt)
		m.slices = m.stratum.Slices()
		m.since = w.exposed(m, senders[m.ID])
	}
}

// risks counts the machines of each of the stratum's slices, within its pool, as
// they were at this time.
func (w *weighing) risks(s rollout.Stratum, at time.Time) []rollout.Risk {
	names := s.Slices()
	out := make([]rollout.Risk, len(names))
	for i := range w.fleet {
		m := &w.fleet[i]
		if m.stratum.Pool != s.Pool || !m.online(at) {
			continue
		}
		exposed := !m.since.IsZero() && !m.since.After(at)
		for n, name := range names {
			if !slices.Contains(m.slices, name) {
				continue
			}
			out[n].Online++
			for i, limit := range rollout.Windows() {
				if exposed && (limit == 0 || at.Sub(m.since) <= limit) {
					out[n].Within[i]++
				}
			}
		}
	}
	return out
}

// exposed is since when m has, or may have, the patch in its kernel; zero when it
// has not. A grant that m has been heard of long after, without using it, is none.
func (w *weighing) exposed(m *member, sender bool) time.Time {
	t := m.Trial
	switch {
	case t == nil || t.Outcome != store.Watched && t.Outcome != store.Healthy && (t.Outcome != store.Harmed || !sender):
		return time.Time{}
	case t.Loaded.IsZero():
		if m.at.Sub(t.Granted) > 2*rollout.GrantTTL && t.Outcome != store.Harmed {
			return time.Time{}
		}
		return t.Granted
	case m.Running.Compare(w.Rollout.Version) > 0:
		return time.Time{} // replaced by a newer one
	}
	return t.Loaded
}

// once tells whether this is the first of its kind from the machine, and notes it.
func (w *weighing) once(machine string, kind rollout.Harm) bool {
	key := store.Weighed{Machine: machine, Kind: kind}
	if w.Weighed[key] {
		return false
	}
	w.Weighed[key] = true
	w.out.Weighed = append(w.out.Weighed, key)
	return true
}

// attempts counts how first attempts ended. Those that the patch had no chance to
// spoil are no attempts.
func (w *weighing) attempts() {
	for _, n := range w.News {
		if n.Version != w.Rollout.Version {
			continue
		}
		var t rollout.Tries
		switch {
		case n.Kind == livepatch.ReportApplied:
			t.Applied = 1
		case n.Kind == livepatch.ReportStuck:
			t.Stuck = 1
		case n.Kind == livepatch.ReportFailed && !excused(n.Code):
			t.Failed = 1
		default:
			continue
		}
		if w.once(n.Machine, attempt) {
			w.out.Judge.ObserveTries(t)
		}
	}
}

// excused tells whether a failure with this code says nothing about the patch: the
// way to the machine, or the machine itself, was at fault.
func excused(c livepatch.Code) bool {
	switch c {
	case livepatch.CodeUnavailable, livepatch.CodeExpired, livepatch.CodeTLS, livepatch.CodeClock, livepatch.CodeDisk,
		livepatch.CodeMetadata, livepatch.CodeRollback, livepatch.CodeNotPrivileged, livepatch.CodeUntrustedKey:
		return true
	}
	return false
}

// reports weighs crashes and warnings, of machines with the patch and without.
func (w *weighing) reports() {
	for _, n := range w.News {
		kind := rollout.HarmOf(n.Kind)
		if kind != rollout.Crash && kind != rollout.Warn || !w.once(n.Machine, kind) {
			continue
		}
		e := rollout.Event{Kind: kind, At: n.Received, Machine: n.Machine, Signature: n.Signature, Known: n.Known,
			Patched: n.Version == w.Rollout.Version}
		e.OwnCode = e.Patched && n.OwnCode
		if e.Patched && n.Trial != nil {
			since := n.Trial.Loaded
			if since.IsZero() {
				since = n.Trial.Granted
			}
			e.Age = rollout.Duration(max(0, n.Received.Sub(since)))
		}
		e.Stratum = rollout.StratumOf(rollout.Machine{Plan: n.Plan, OptIn: n.OptIn, Kernel: livepatch.Kernel{Release: w.Rollout.Kernel.Release}}, n.Hardware, n.Virt)
		w.observe(e)
	}
}

// observe gives the judge one event, with the machines at risk in its groups.
func (w *weighing) observe(e rollout.Event) {
	e.Risks = w.risks(e.Stratum, e.At)
	w.out.Judge.Observe(e)
}

// silences weighs machines that fell silent since the rollout began, whoever they
// are, in the order of their last words.
func (w *weighing) silences() {
	var silent []*member
	for i := range w.fleet {
		m := &w.fleet[i]
		if !m.online(w.Now) && !m.at.Before(w.Started) && w.once(m.ID, rollout.Silence) {
			silent = append(silent, m)
		}
	}
	slices.SortStableFunc(silent, func(a, b *member) int { return a.at.Compare(b.at) })
	for _, m := range silent {
		e := rollout.Event{Kind: rollout.Silence, At: m.at, Machine: m.ID, Stratum: m.stratum, Patched: !m.since.IsZero()}
		if e.Patched {
			e.Age = rollout.Duration(max(0, m.at.Sub(m.since)))
		}
		w.observe(e)
	}
}

// healthy finds the machines that were heard of after their watch.
func (w *weighing) healthy() {
	watch := time.Duration(w.Rollout.Policy.Watch)
	for i := range w.fleet {
		m := &w.fleet[i]
		t := m.Trial
		if t != nil && t.Outcome == store.Watched && !t.Loaded.IsZero() && !m.at.Before(t.Loaded.Add(watch)) {
			t.Outcome = store.Healthy
			w.out.Healthy = append(w.out.Healthy, m.ID)
		}
	}
}

// progress counts the rollout as it is in the stage of r.
func (w *weighing) progress(r *rollout.Rollout) rollout.Progress {
	p := rollout.Progress{Fleet: len(w.fleet)}
	for i := range w.fleet {
		m := &w.fleet[i]
		if order(rollout.FirstTier(m.Plan, m.OptIn)) <= order(r.CurrentStage().Tier) {
			p.Eligible++
			if rollout.Drawn(m.Machine, r) {
				p.Drawn++
			}
		}
		t := m.Trial
		if t == nil || t.Outcome == store.Void {
			continue
		}
		p.Granted++
		switch {
		case t.Outcome == store.Healthy:
			p.Healthy++
		case t.Outcome == store.Watched && w.Now.Sub(t.Granted) < time.Duration(r.Policy.Watch):
			p.Pending++
		}
	}
	return p
}

// order ranks the tiers, first exposed first.
func order(t livepatch.Tier) int {
	return slices.Index([]livepatch.Tier{livepatch.TierCanary, livepatch.TierEarly, livepatch.TierGeneral}, t)
}

// advance lets the rollout go on as far as it may now.
func (w *weighing) advance() {
	r := w.Rollout
	w.out.Progress = w.progress(&r)
	for {
		next, change := rollout.Advance(r, w.out.Judge, w.out.Progress, w.Now)
		if change == nil {
			next, change = w.pass(r)
		}
		if change == nil || change.Action == "advance" && len(w.fleet) == 0 {
			return // where there is no machine, time proves nothing
		}
		if change.Action == "halt" {
			w.out.Halt = change
			return
		}
		w.out.Changes = append(w.out.Changes, *change)
		r, w.out.Rollout = next, next
		w.out.Progress = w.progress(&r)
	}
}

// pass goes on from a stage that draws nobody whom the one before it had not drawn:
// nothing can be learnt in it. Without this a fleet of three machines would wait a
// day for canaries that it has not got.
func (w *weighing) pass(r rollout.Rollout) (rollout.Rollout, *rollout.StageChange) {
	until, _ := r.Policy.FrozenUntil(w.Now)
	if !r.State.Moving() || r.Paused || r.Cautious(w.Now) || !until.IsZero() || r.Stage+1 >= len(r.Policy.Stages) || len(w.fleet) == 0 {
		return r, nil
	}
	before := 0
	if r.Stage > 0 {
		earlier := r
		earlier.Stage--
		before = w.progress(&earlier).Drawn
	}
	if w.out.Progress.Drawn > before {
		return r, nil
	}
	next, change, err := rollout.Operate(r, "promote", rollout.ActorJudge, "no further machine is drawn in this stage", w.Now)
	if err != nil {
		return r, nil
	}
	return next, &change
}

// restless is how long a machine that asked in vain is not woken again.
const restless = time.Minute

// free finds whom to tell that there are grants to be had: as many as there are,
// longest waiting first, and of those that hold an event stream.
func (w *weighing) free() {
	r := w.out.Rollout
	until, _ := r.Policy.FrozenUntil(w.Now)
	if w.out.Halt != nil || !r.State.Moving() || r.Paused || !until.IsZero() && !r.Expedited {
		return
	}
	free, begun := r.PendingLimit(w.out.Progress, w.Now), len(w.out.Changes) > 0
	switch {
	case free < 0 && !begun:
		return // they were told when the stage began
	case free < 0:
		free = len(w.fleet)
	default:
		free = max(0, free-w.out.Progress.Pending)
	}
	var waiting []*member
	for i := range w.fleet {
		m := &w.fleet[i]
		if m.connected && (m.Trial == nil || m.Trial.Outcome == store.Void) && m.Running.Compare(r.Version) < 0 && (begun || w.Now.Sub(m.LastSeen) > restless) && rollout.Drawn(m.Machine, &r) {
			waiting = append(waiting, m)
		}
	}
	slices.SortStableFunc(waiting, func(a, b *member) int { return cmp.Compare(a.LastSeen.UnixNano(), b.LastSeen.UnixNano()) })
	for _, m := range waiting[:min(len(waiting), free)] {
		w.out.Waiting = append(w.out.Waiting, m.ID)
	}
}
