package rollout

import (
	"math"
	"time"
)

// Judge weighs the bad reports of one rollout. It is a value that encodes to JSON
// and back; not safe for concurrent use.
//
// It keeps many bets against the patch being harmless, each with a fixed part of
// one unit of stake. Evidence is what they are worth together. At each bad report
// the bets win or lose by whether the sender had loaded the patch, and how long
// ago, beside how many of the machines online then had. While the patch is
// harmless no bet can be expected to grow, whatever the background rate is and
// however it changes, so by Ville's inequality the chance that the evidence ever
// reaches 1/FalseHalts is at most FalseHalts. It may be looked at after every
// report. docs/rollouts.md has the whole argument.
type Judge struct {
	Settings Judging `json:"settings"`
	// Tests are those that had an event; the others' stakes are whole.
	Tests []*Test `json:"tests,omitempty"`
	// Own is the bet on crashes in the patch's own code.
	Own OwnCode `json:"own_code"`
	// Signatures counts the reports by kind and signature ("crash rip:...") of
	// those that were not known before.
	Signatures map[string]*Signature `json:"signatures,omitempty"`
	// Tries are the outcomes of the attempts to apply the patch.
	Tries Tries `json:"tries"`
	// Suspected is when a report last raised suspicion, zero when none did.
	Suspected time.Time `json:"suspected,omitzero"`

	// index finds tests, and sum is what they are worth above their stakes; both
	// are made anew after decoding.
	index map[testKey]*Test
	sum   float64
}

// Signature counts the reports with one signature.
type Signature struct {
	Patched int `json:"patched"`
	Others  int `json:"others"`
	// Expected is how many of them patched machines of any age would have sent by
	// chance.
	Expected float64 `json:"expected"`
	// Machines are the patched ones, the first 20.
	Machines []string `json:"machines,omitempty"`
}

// Tries counts how attempts to apply the patch ended.
type Tries struct {
	Applied int `json:"applied"`
	Stuck   int `json:"stuck"`
	Failed  int `json:"failed"`
}

// OwnCode is the bet on crashes in the patch's own code.
type OwnCode struct {
	// Log is the logarithm of its growth.
	Log     float64 `json:"log"`
	Crashes int     `json:"crashes"`
	// Machines are those that crashed so, the first 20.
	Machines []string `json:"machines,omitempty"`
}

// Test is the comparison of patched and other machines for one kind of harm in one
// slice of the fleet.
type Test struct {
	Kind  Harm   `json:"kind"`
	Slice string `json:"slice,omitempty"`
	// Weight is the test's part of the stake.
	Weight float64 `json:"weight"`
	// Logs are the logarithms of the growth of its bets, in the order of bettors.
	Logs []float64 `json:"logs"`
	// Events counts all events, Patched those of patched machines by the window of
	// their age, and Expected how many of those there would be by chance.
	Events   int                  `json:"events"`
	Patched  [WindowCount]int     `json:"patched"`
	Expected [WindowCount]float64 `json:"expected"`
	// Machines are the patched machines among the events, the first 20.
	Machines []string `json:"machines,omitempty"`
}

type testKey struct {
	kind  Harm
	slice string
}

// bettor is one way to bet. Against a harmless patch each loses on average; which
// of them wins most tells of the harm.
type bettor struct {
	weight float64
	// grades says how much a bet is on machines whose age is in each window.
	grades [WindowCount]float64
	// boldness scales the stakes of stake.
	boldness float64
}

// bettorCount is how many strategies share the stake of one test.
const bettorCount = 4

// bettors bet on harm soon after the load or at any age, boldly or less so.
func bettors() [bettorCount]bettor {
	soon, ever := [WindowCount]float64{1, 0.3, 0.05, 0}, [WindowCount]float64{1, 1, 1, 1}
	return [bettorCount]bettor{{0.5, soon, 1}, {0.15, soon, 0.1}, {0.25, ever, 1}, {0.1, ever, 0.1}}
}

// The stakes on an event, by its signature: how much more often than by chance the
// bold bettor holds that patched machines send it. A signature that appears on
// machines without the patch as well says little; one that so far only patched
// machines had, and now for the second time, says most.
const (
	stakeKnown    = 3
	stakeNone     = 30
	stakeNew      = 300
	stakeRepeated = 20000
	// stakeOwnCode is on crashes in the patch's own code.
	stakeOwnCode = 10000
)

// maxMachines bounds the lists of machines kept for people.
const maxMachines = 20

// NewJudge starts a rollout's judge.
func NewJudge(settings Judging) *Judge { return &Judge{Settings: settings.withDefaults()} }

// ObserveTries adds outcomes of attempts.
func (j *Judge) ObserveTries(t Tries) {
	j.Tries.Applied += t.Applied
	j.Tries.Stuck += t.Stuck
	j.Tries.Failed += t.Failed
}

// Observe weighs one event and tells whether it is suspicious: it at least doubled
// the evidence, to Settings.Suspicion or more.
func (j *Judge) Observe(e Event) bool {
	part := partOf(e.Kind)
	if part == 0 || len(e.Risks) == 0 {
		return false
	}
	before := j.Evidence()
	stake := j.stake(&e)
	for i, slice := range e.Stratum.Slices() {
		if i < len(e.Risks) {
			j.bet(&e, testKey{e.Kind, slice}, part, stake, e.Risks[i].of(&e))
		}
	}
	if e.Kind == Crash {
		j.Own.observe(&e, e.Risks[0].of(&e), j.Settings)
	}
	j.remember(&e)
	after := j.Evidence()
	if after >= j.Settings.Suspicion && after >= 2*before {
		j.Suspected = e.At
		return true
	}
	return false
}

// stake is the bold bettor's stake on e, from what is known before e.
func (j *Judge) stake(e *Event) float64 {
	switch s := j.Signatures[e.name()]; {
	case e.Signature == "":
		return stakeNone
	case e.Known || s != nil && s.Others > 0:
		return stakeKnown
	case s == nil:
		return stakeNew
	}
	return stakeRepeated
}

// name is the key of e's signature.
func (e *Event) name() string { return string(e.Kind) + " " + e.Signature }

// remember counts e's signature.
func (j *Judge) remember(e *Event) {
	if e.Signature == "" || e.Known {
		return
	}
	if j.Signatures == nil {
		j.Signatures = map[string]*Signature{}
	}
	s := j.Signatures[e.name()]
	if s == nil {
		s = &Signature{}
		j.Signatures[e.name()] = s
	}
	risk := e.Risks[0].of(e)
	s.Expected += float64(risk.Within[WindowCount-1]) / float64(risk.Online)
	if !e.Patched {
		s.Others++
		return
	}
	s.Patched++
	if len(s.Machines) < maxMachines {
		s.Machines = append(s.Machines, e.Machine)
	}
}

// of is r with e's sender in it, however the counts were read.
func (r Risk) of(e *Event) Risk {
	least := 0
	for w := range r.Within {
		if e.Patched && window(time.Duration(e.Age)) <= w {
			least = max(least, 1)
		}
		least = max(least, r.Within[w])
		r.Within[w] = least
	}
	if !e.Patched {
		least++
	}
	r.Online = max(r.Online, least)
	return r
}

// partOf is the part of the stake of a kind that has a control group; else 0.
func partOf(kind Harm) float64 {
	for _, s := range compared() {
		if s.kind == kind {
			return s.part
		}
	}
	return 0
}

// bet lets the test of key observe e; a new test gets its weight of part. The
// whole pool has 0.65 of it. The slices share the rest by the order of their first
// event, whoever had it, since nobody can list them in advance: the weights
// 4/((k+3)(k+4)) for k = 1, 2, ... add up to 1.
func (j *Judge) bet(e *Event, key testKey, part, stake float64, risk Risk) {
	j.prepare()
	t, ok := j.index[key]
	if !ok {
		weight := 0.65 * part
		if key.slice != "" {
			k := 1.0
			for _, t := range j.Tests {
				if t.Kind == key.kind && t.Slice != "" {
					k++
				}
			}
			weight = 0.35 * part * 4 / ((k + 3) * (k + 4))
		}
		t = &Test{Kind: key.kind, Slice: key.slice, Weight: weight, Logs: make([]float64, bettorCount)}
		j.index[key] = t
		j.Tests = append(j.Tests, t)
	}
	before := t.worth()
	t.observe(e, stake, risk, j.Settings.Tolerance)
	j.sum += t.worth() - before
}

// prepare makes what is not encoded.
func (j *Judge) prepare() {
	if j.index != nil {
		return
	}
	j.index, j.sum = map[testKey]*Test{}, 0
	for _, t := range j.Tests {
		j.index[testKey{t.Kind, t.Slice}] = t
		j.sum += t.worth() - t.Weight
	}
}

// observe lets the bets win or lose. With g the grade of the sender (0 without the
// patch), G the mean grade of all machines at risk and c the stake, a bet grows by
// (1 + c g) / (1 + c tolerance G). As long as no machine with the patch fails more
// than tolerance times as often as machines do on average, g is in the mean at
// most tolerance G, and the bet does not grow in the mean.
func (t *Test) observe(e *Event, stake float64, risk Risk, tolerance float64) {
	t.Events++
	at := WindowCount // of those without the patch
	if e.Patched {
		at = window(time.Duration(e.Age))
		t.Patched[at]++
		if len(t.Machines) < maxMachines {
			t.Machines = append(t.Machines, e.Machine)
		}
	}
	var share [WindowCount]float64
	younger := 0
	for w, n := range risk.Within {
		share[w] = float64(n-younger) / float64(risk.Online)
		t.Expected[w] += share[w]
		younger = n
	}
	for i, b := range bettors() {
		c, mean := stake*b.boldness, 0.0
		for w, g := range b.grades {
			mean += g * share[w]
		}
		t.Logs[i] -= math.Log1p(c * min(tolerance*mean, 1))
		if at < WindowCount {
			t.Logs[i] += math.Log1p(c * b.grades[at])
		}
	}
}

// observe bets like a test, soon after the load, but on less than that the sender
// has the patch: that it crashed in the patch's code, which of a harmless patch's
// crashes at most the share s.OwnCode does.
func (o *OwnCode) observe(e *Event, risk Risk, s Judging) {
	grades, younger, mean := bettors()[0].grades, 0, 0.0
	for w, n := range risk.Within {
		mean += grades[w] * float64(n-younger) / float64(risk.Online)
		younger = n
	}
	o.Log -= math.Log1p(stakeOwnCode * min(s.Tolerance*s.OwnCode*mean, 1))
	if !e.Patched || !e.OwnCode {
		return
	}
	o.Log += math.Log1p(stakeOwnCode * grades[window(time.Duration(e.Age))])
	o.Crashes++
	if len(o.Machines) < maxMachines {
		o.Machines = append(o.Machines, e.Machine)
	}
}

// worth is what its stake has become.
func (o *OwnCode) worth() float64 { return ownCodePart * math.Exp(min(o.Log, 600)) }

// worth is what the test's stake has become.
func (t *Test) worth() float64 {
	sum := 0.0
	for i, b := range bettors() {
		sum += b.weight * math.Exp(min(t.Logs[i], 600)) // e^709 is the largest float64
	}
	return t.Weight * sum
}

// growth is what a stake of 1 on too many attempts ending badly has become: k of
// n, where up to p0 is tolerated.
func growth(k, n int, p0 float64) float64 {
	alternatives := []float64{min(2*p0, 0.9), min(4*p0, 0.9), 0.5, 0.9}
	sum := 0.0
	for _, p1 := range alternatives {
		log := float64(k)*math.Log(p1/p0) + float64(n-k)*math.Log((1-p1)/(1-p0))
		sum += math.Exp(min(log, 600))
	}
	return sum / float64(len(alternatives))
}

// tries is the growth of the bet on one kind of attempts ending badly.
func (j *Judge) tries(kind Harm) (bad, all int, g float64) {
	all = j.Tries.Applied + j.Tries.Stuck + j.Tries.Failed
	if kind == Stuck {
		return j.Tries.Stuck, all, growth(j.Tries.Stuck, all, j.Settings.TolerateStuck)
	}
	return j.Tries.Failed, all, growth(j.Tries.Failed, all, j.Settings.TolerateFailed)
}

// Evidence is what a stake of 1 against the patch has become. It begins at 1; at
// 1/FalseHalts the patch is called harmful.
func (j *Judge) Evidence() float64 {
	j.prepare()
	evidence := 1 + j.sum + j.Own.worth() - ownCodePart
	for _, s := range attempts() {
		_, _, g := j.tries(s.kind)
		evidence += s.part * (g - 1)
	}
	return evidence
}
