package sim

import (
	"container/heap"
	"math/rand/v2"

	"livepatch/internal/rollout"
)

// outcome is how one simulated rollout ended.
type outcome struct {
	halted bool
	state  rollout.State // at the end, or before the halt
	at     instant       // of the halt
	full   instant       // when everybody had it; -1 if never
	got    int           // machines that loaded it
	killed int           // those of them that die of it, be it later
}

// world is one run of one or more rules.
type world struct {
	cfg   *Config
	cells []cell
	ids   []string
	fleet *fleet
	ms    []machine
	rng   *rand.Rand
	now   instant
	real  bool // judged by the real judge

	// rules watch the same run: none but the first can change its course.
	rules  []rule
	outs   []outcome // of the rules, those that halted
	left   int       // how many have not
	got    int
	killed int
	full   instant

	rollout  rollout.Rollout
	judge    *rollout.Judge
	progress rollout.Progress
	asking   []rollout.Candidate

	online  []int                        // by group
	within  [rollout.WindowCount][]int   // by window, group
	aging   [rollout.WindowCount - 1]int // per bounded window: first load still in it
	loads   []grant                      // those that were loaded, in order
	grants  []grant                      // in order
	watched int                          // first grant whose watch has not ended
	waiting []int32                      // machines drawn into the stage, not yet granted
	silent  []silence                    // in order of notice
	noticed int                          // first of them not noticed yet
	events  eventHeap
	clocks  [3]instant // the next background crash, vanishing, leaving
	tick    instant    // when Advance is next asked
	soaked  instant    // when the stage has soaked
	calm    instant    // when caution ends
	unique  int
}

type grant struct {
	at instant
	m  int32
}

// silence is a machine's last contact.
type silence struct {
	grant
	event rollout.Event
	order int32 // of its load when in its watch, else -1
}

// event is something that happens to one machine at a known time.
type event struct {
	at        instant
	m         int32
	kind      uint8
	signature int32
}

const (
	dies    uint8 = iota // of the patch
	reports              // that it rebooted
	returns
)

type eventHeap []event

func (h eventHeap) Len() int           { return len(h) }
func (h eventHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h eventHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)        { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// start readies w for a run of these rules on f.
func (w *world) start(f *fleet, names ...string) error {
	r, err := newRollout(w.cfg, f.key)
	if err != nil {
		return err
	}
	w.fleet, w.real, w.rules = f, names[0] == judged, nil
	for _, name := range names {
		w.rules = append(w.rules, newRule(name, w.cfg))
	}
	w.outs, w.left = make([]outcome, len(names)), len(names)
	w.ms = append(w.ms[:0], f.machines...)
	w.rng = rand.New(rand.NewPCG(f.seed, 0))
	w.now, w.got, w.killed, w.full, w.unique = 0, 0, 0, -1, 0
	w.judge = rollout.NewJudge(w.cfg.Policy.Judge)
	w.progress = rollout.Progress{Fleet: w.cfg.Machines}
	clear(w.online)
	for i := range w.within {
		clear(w.within[i])
	}
	w.aging = [rollout.WindowCount - 1]int{}
	w.loads, w.grants, w.silent, w.events = w.loads[:0], w.grants[:0], w.silent[:0], w.events[:0]
	w.watched, w.noticed, w.tick = 0, 0, 0
	for i := range w.ms {
		if w.ms[i].online {
			w.count(int32(i), 1)
			continue
		}
		w.push(event{at: w.after(leaveHours), m: int32(i), kind: returns})
	}
	w.set(r)
	w.asking = []rollout.Candidate{{Rollout: &w.rollout, BuildIDs: []string{simKernel().BuildID}}}
	for i := range w.clocks {
		w.clocks[i] = w.arrival(i)
	}
	w.enter()
	return nil
}

func (w *world) push(e event) { heap.Push(&w.events, e) }

// after is an exponential time from now with this mean in hours.
func (w *world) after(mean float64) instant { return w.now + hours(w.rng.ExpFloat64()*mean) }

// The clocks of what happens to any machine at a constant rate.
const (
	crashes = iota
	vanishes
	leaves
)

// arrival is the next time of a clock. It runs as if all machines were online;
// what strikes one that is not has no effect.
func (w *world) arrival(clock int) instant {
	rate := [...]float64{w.cfg.Background, w.cfg.Vanish, w.cfg.Leave}[clock]
	if rate == 0 {
		return eternity
	}
	bad := instant(w.cfg.BadDayAfter)
	if clock == crashes && w.cfg.BadDay > 1 && w.now >= bad {
		rate *= w.cfg.BadDay
	}
	next := w.after(1 / (rate * float64(w.cfg.Machines)))
	if clock == crashes && w.cfg.BadDay > 1 && w.now < bad && next > bad {
		w.now, bad = bad, w.now // memoryless: begin again at the bad day's rate
		next = w.after(1 / (rate * w.cfg.BadDay * float64(w.cfg.Machines)))
		w.now = bad
	}
	return next
}

// run simulates until all rules have halted, until everybody has the patch, or the
// horizon. It returns an outcome for each rule.
func (w *world) run() []outcome {
	w.pump()
	for w.left > 0 && w.full < 0 {
		at, what := w.next()
		if at > hours(24*horizonDays) {
			break
		}
		w.now = at
		w.do(what)
		if w.left > 0 {
			w.advance()
			w.pump()
		}
	}
	for i := range w.outs {
		if !w.outs[i].halted {
			w.outs[i] = w.outcome()
		}
	}
	return w.outs
}

// outcome is how it stands now.
func (w *world) outcome() outcome {
	return outcome{state: w.rollout.State, full: w.full, got: w.got, killed: w.killed}
}

// What can be next, after the clocks.
const (
	happens = leaves + 1 + iota
	watchEnds
	silenceNoticed
	stageSoaked
	cautionEnds
	ages // and the windows after it
)

// next is the earliest thing to happen.
func (w *world) next() (at instant, what int) {
	at = eternity
	earlier := func(t instant, k int) {
		if t < at {
			at, what = t, k
		}
	}
	for i, t := range w.clocks {
		earlier(t, i)
	}
	if len(w.events) > 0 {
		earlier(w.events[0].at, happens)
	}
	if w.watched < len(w.grants) {
		earlier(w.grants[w.watched].at+instant(w.cfg.Policy.Watch), watchEnds)
	}
	if w.noticed < len(w.silent) {
		earlier(w.silent[w.noticed].at+minutes(noticeAfter), silenceNoticed)
	}
	for i, first := range w.aging {
		if first < len(w.loads) {
			earlier(w.loads[first].at+instant(rollout.Windows()[i])+1, ages+i)
		}
	}
	if w.rollout.Stage+1 < len(w.rollout.Policy.Stages) {
		earlier(max(w.tick, w.soaked), stageSoaked)
	}
	if w.calm > w.now {
		earlier(w.calm, cautionEnds)
	}
	return at, what
}

func (w *world) do(what int) {
	switch what {
	case crashes, vanishes, leaves:
		w.clocks[what] = w.arrival(what)
		if m := int32(w.rng.IntN(len(w.ms))); w.ms[m].online {
			w.strike(what, m)
		}
	case happens:
		w.happen(heap.Pop(&w.events).(event))
	case watchEnds:
		w.endWatch(w.grants[w.watched].m)
		w.watched++
	case silenceNoticed:
		w.notice(&w.silent[w.noticed])
		w.noticed++
	case stageSoaked, cautionEnds:
		// advance and pump come after everything
	default:
		w.age(what - ages)
	}
}
