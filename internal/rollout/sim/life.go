package sim

import (
	"math"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// count adds m to (by 1) or takes it out of (by -1) the groups of those online.
func (w *world) count(m int32, by int) {
	x := &w.ms[m]
	x.online = by > 0
	groups := &w.cells[x.cell].groups
	for _, g := range groups {
		w.online[g] += by
	}
	for i, limit := range rollout.Windows() {
		bit := uint8(1) << i
		if by > 0 && x.loaded >= 0 && (limit == 0 || w.now-x.loaded <= instant(limit)) {
			x.windows |= bit
		}
		if x.windows&bit == 0 {
			continue
		}
		for _, g := range groups {
			w.within[i][g] += by
		}
		if by < 0 {
			x.windows &^= bit
		}
	}
}

// age takes the oldest load out of a window.
func (w *world) age(window int) {
	l := w.loads[w.aging[window]]
	w.aging[window]++
	x, bit := &w.ms[l.m], uint8(1)<<window
	if x.loaded == l.at && x.windows&bit != 0 {
		x.windows &^= bit
		for _, g := range w.cells[x.cell].groups {
			w.within[window][g]--
		}
	}
}

// strike is a crash, a vanishing or a leaving of a machine that is online.
func (w *world) strike(what int, m int32) {
	switch what {
	case crashes:
		w.goDown(m, background(w.rng), false)
	case vanishes:
		w.goSilent(event{at: w.after(vanishHours), m: m, kind: returns})
	case leaves:
		x := &w.ms[m]
		w.count(m, -1)
		if x.pending {
			for _, r := range w.rules {
				r.left(int(x.order))
			}
		}
		w.push(event{at: w.after(leaveHours), m: m, kind: returns})
	}
}

// goDown crashes m: it reboots and reports, or it is not heard of until somebody
// comes and starts it, and then has lost the evidence.
func (w *world) goDown(m int32, signature int32, silently bool) {
	if silently {
		w.goSilent(event{at: w.after(deadHours), m: m, kind: reports})
		return
	}
	w.count(m, -1)
	reboot := minutes(rebootLeast + (rebootMost-rebootLeast)*w.rng.Float64())
	w.push(event{at: w.now + reboot, m: m, kind: reports, signature: signature})
}

// goSilent takes a machine away until back; if that is long enough, it will be
// noticed.
func (w *world) goSilent(back event) {
	x := &w.ms[back.m]
	if back.at-w.now > minutes(noticeAfter) {
		s := silence{grant: grant{at: w.now, m: back.m}, event: w.report(back.m, rollout.Silence, 0), order: -1}
		if x.loaded >= 0 && w.now-x.loaded <= instant(w.cfg.Policy.Watch) {
			s.order = x.order
		}
		w.silent = append(w.silent, s)
	}
	w.count(back.m, -1)
	w.push(back)
}

// happen is an event of one machine.
func (w *world) happen(e event) {
	x := &w.ms[e.m]
	switch e.kind {
	case dies:
		if !x.online || x.loaded < 0 {
			return // it crashed or left before
		}
		f := w.fleet.fate(w.cfg, e.m)
		w.goDown(e.m, f.signature, f.silent)
	case reports:
		w.crashed(e.m, e.signature)
	case returns:
		w.heardAgain(x)
		w.count(e.m, 1)
		w.enlist(e.m)
		if x.unheard {
			w.healthy(x)
		}
	}
}

// heardAgain tells the rules that a machine they took for silent is not.
func (w *world) heardAgain(x *machine) {
	if x.quiet {
		x.quiet = false
		for _, r := range w.rules {
			r.back(int(x.order))
		}
	}
}

// crashed is the report of m, which has just booted again. Its boot guard does not
// load the patch again.
func (w *world) crashed(m int32, signature int32) {
	x := &w.ms[m]
	e := w.report(m, rollout.Crash, signature)
	loaded, order := x.loaded, x.order
	x.loaded, x.unheard = -1, false
	w.count(m, 1)
	w.enlist(m)
	if x.pending {
		x.pending = false
		w.progress.Pending--
	}
	if loaded >= 0 && w.now-loaded <= minutes(60) {
		w.tell(func(r rule) bool { return r.failed(int(order)) })
	}
	w.observe(m, e)
}

// notice is when m has not been heard of for long enough.
func (w *world) notice(s *silence) {
	if s.order >= 0 {
		w.ms[s.m].quiet = true
		w.tell(func(r rule) bool { return r.silent(int(s.order)) })
	}
	w.observe(s.m, s.event)
}

// report is what a bad report of m says, and what m is compared with. Crashes of
// machines that are rebooting are counted among those online.
func (w *world) report(m int32, kind rollout.Harm, s int32) rollout.Event {
	x := &w.ms[m]
	if s == signatureNew {
		w.unique++
	}
	c := &w.cells[x.cell]
	e := rollout.Event{Kind: kind, At: w.now.time(), Machine: w.ids[m], Signature: signature(s, w.unique),
		Known: s >= 1 && s <= knownSignatures, Stratum: c.stratum, Patched: x.loaded >= 0,
		Age: rollout.Duration(w.now - x.loaded), Risks: make([]rollout.Risk, len(c.groups))}
	for i, g := range c.groups {
		r := rollout.Risk{Online: w.online[g]}
		if !x.online {
			r.Online++
		}
		for win, limit := range rollout.Windows() {
			r.Within[win] = w.within[win][g]
			if !x.online && e.Patched && (limit == 0 || time.Duration(e.Age) <= limit) {
				r.Within[win]++
			}
		}
		e.Risks[i] = r
	}
	return e
}

// observe tells the judge of m's first event of its kind.
func (w *world) observe(m int32, e rollout.Event) {
	if !w.real {
		return
	}
	bit := uint8(1)
	if e.Kind == rollout.Silence {
		bit = 2
	}
	if w.ms[m].seen&bit != 0 {
		return
	}
	w.ms[m].seen |= bit
	if w.judge.Observe(e) || w.judge.Evidence() >= 1/w.judge.Settings.FalseHalts {
		w.tick = 0
		w.ask()
	}
}

// tell tells each rule that has not halted; where bad says so, it halts now.
func (w *world) tell(bad func(rule) bool) {
	for i, r := range w.rules {
		if !w.outs[i].halted && bad(r) {
			w.halt(i)
		}
	}
}

// halt ends the run for one rule.
func (w *world) halt(i int) {
	w.outs[i] = w.outcome()
	w.outs[i].halted, w.outs[i].at = true, w.now
	w.left--
}

// advance asks rollout.Advance once a minute, once the stage has soaked.
func (w *world) advance() {
	if w.now < max(w.tick, w.soaked) || w.rollout.Stage+1 >= len(w.rollout.Policy.Stages) {
		return
	}
	w.tick = w.now + minutes(1)
	w.ask()
}

// ask lets rollout.Advance move the rollout.
func (w *world) ask() {
	next, change := rollout.Advance(w.rollout, w.judge, w.progress, w.now.time())
	if change == nil {
		return
	}
	if next.State == rollout.Halted {
		w.halt(0)
		return
	}
	stage := w.rollout.Stage
	w.set(next)
	if next.Stage != stage {
		w.enter()
	}
}

// set makes r the rollout as it is from now on.
func (w *world) set(r rollout.Rollout) {
	w.rollout = r
	w.soaked = instant(r.SoakedAt().Sub(epoch()))
	w.calm = 0
	if !r.CautionSince.IsZero() {
		w.calm = instant(r.CautionSince.Sub(epoch())) + instant(r.Policy.Caution.Hold)
	}
}

// enter lists the machines of the stage just entered.
func (w *world) enter() {
	w.waiting = w.waiting[:0]
	w.progress.Eligible, w.progress.Drawn = 0, 0
	for i := range w.ms {
		m := int32(i)
		if !w.eligible(m) {
			continue
		}
		w.progress.Eligible++
		if w.fleet.draws[m] < w.rollout.CurrentStage().Share {
			w.progress.Drawn++
			if w.ms[m].online {
				w.enlist(m)
			}
		}
	}
}

// eligible tells whether the stage's tier may draw m.
func (w *world) eligible(m int32) bool {
	return w.rollout.State == rollout.General || w.cells[w.ms[m].cell].stratum.Pool == rollout.PoolCommunity
}

// enlist adds m, which is online, to those that wait for a grant if it is drawn.
// Decide has the last word when its turn comes.
func (w *world) enlist(m int32) {
	if !w.ms[m].got && w.eligible(m) && w.fleet.draws[m] < w.rollout.CurrentStage().Share {
		w.waiting = append(w.waiting, m)
	}
}

// pump lets waiting machines check in while grants are to be had, as the service
// wakes them. Each gets what rollout.Decide says.
func (w *world) pump() {
	now := w.now.time()
	for w.left > 0 && len(w.waiting) > 0 && !w.rules[0].hold() {
		limit := w.rollout.PendingLimit(w.progress, now)
		if limit >= 0 && w.progress.Pending >= limit {
			return
		}
		m := w.waiting[len(w.waiting)-1]
		x := &w.ms[m]
		if !x.online || x.got {
			w.waiting = w.waiting[:len(w.waiting)-1]
			continue
		}
		w.asking[0].Progress = w.progress
		if rollout.Decide(w.asker(m), w.asking, now).Answer != rollout.Grant {
			return
		}
		w.waiting = w.waiting[:len(w.waiting)-1]
		w.load(m)
	}
}

// asker is m as Decide sees it.
func (w *world) asker(m int32) rollout.Machine {
	out := rollout.Machine{ID: w.ids[m], Plan: rollout.PlanCommunity, Kernel: simKernel()}
	switch {
	case w.ms[m].optIn:
		out.Plan, out.OptIn = "standard", livepatch.TierCanary
	case w.cells[w.ms[m].cell].stratum.Pool != rollout.PoolCommunity:
		out.Plan = "standard"
	}
	return out
}

// load is m using its grant: it takes seconds.
func (w *world) load(m int32) {
	x := &w.ms[m]
	x.got = true
	w.progress.Granted++
	if w.rng.Float64() < refused {
		w.judge.ObserveTries(rollout.Tries{Failed: 1})
	} else {
		w.judge.ObserveTries(rollout.Tries{Applied: 1})
		w.count(m, -1)
		x.loaded, x.order, x.pending = w.now, int32(w.got), true
		w.count(m, 1)
		w.progress.Pending++
		g := grant{at: w.now, m: m}
		w.grants, w.loads = append(w.grants, g), append(w.loads, g)
		for _, r := range w.rules {
			r.granted(w.got)
		}
		w.got++
		if w.cells[x.cell].hit && w.cfg.Lethal > 0 {
			if f := w.fleet.fate(w.cfg, m); f.dies {
				w.killed++
				w.push(event{at: w.now + f.delay, m: m, kind: dies})
			}
		}
	}
	if w.full < 0 && w.progress.Granted >= int(math.Ceil(fullShare*float64(len(w.ms)))) {
		w.full = w.now
	}
}

// endWatch is when m's grant is no longer pending.
func (w *world) endWatch(m int32) {
	x := &w.ms[m]
	if !x.pending {
		return
	}
	x.pending = false
	w.progress.Pending--
	if x.unheard = !x.online; !x.unheard {
		w.healthy(x)
	}
}

// healthy is x being heard of after its watch, with nothing bad to report.
func (w *world) healthy(x *machine) {
	x.unheard = false
	w.progress.Healthy++
	for _, r := range w.rules {
		r.success(int(x.order))
	}
}
