package rollout

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// Judge weighs the bad reports of one rollout. It is a value that encodes to JSON
// and back; not safe for concurrent use.
//
// It keeps many tests, each a bet against the patch being harmless, and each with
// a fixed part of one unit of stake. Evidence is what the bets are worth together.
// While the patch is harmless no bet can be expected to grow, whatever the
// background rate is and however it changes, so by Ville's inequality the chance
// that the evidence ever reaches 1/FalseHalts is at most FalseHalts. It may be
// looked at after every report. docs/rollouts.md has the whole argument.
type Judge struct {
	Settings Judging `json:"settings"`
	// Tests are those that had an event; the others' stakes are whole.
	Tests []*Test `json:"tests,omitempty"`
	// Tries are the outcomes of the attempts to apply the patch.
	Tries Tries `json:"tries"`
	// Suspected is when a report last raised suspicion, zero when none did.
	Suspected time.Time `json:"suspected,omitzero"`

	// index finds tests, and sum is what they are worth above their stakes; both
	// are made anew after decoding.
	index map[testKey]*Test
	sum   float64
}

// Tries counts how attempts to apply the patch ended.
type Tries struct {
	Applied int `json:"applied"`
	Stuck   int `json:"stuck"`
	Failed  int `json:"failed"`
}

// Test is the comparison of patched and other machines for one kind of harm: in
// one slice of the fleet over all signatures, or for one signature that was new
// when the rollout began.
type Test struct {
	Kind      Harm   `json:"kind"`
	Slice     string `json:"slice,omitempty"`
	Signature string `json:"signature,omitempty"`
	// Weight is the test's part of the stake.
	Weight float64 `json:"weight"`
	// Logs are the logarithms of the bets' growth, for each window and ratio.
	Logs []float64 `json:"logs"`
	// Events counts all events, Exposed those of exposed machines by window, and
	// Expected how many of those a harmless patch would have been expected to have.
	Events   int                  `json:"events"`
	Exposed  [windowCount]int     `json:"exposed"`
	Expected [windowCount]float64 `json:"expected"`
	// Machines are the patched machines among the events, the first 20.
	Machines []string `json:"machines,omitempty"`
}

type testKey struct {
	kind             Harm
	slice, signature string
}

// pooledRatios are the ratios of rates that tests over all signatures bet on.
func pooledRatios() []float64 { return []float64{3, 10, 50, 500} }

// signatureRatios are those that tests of one new signature bet on: a signature
// that only the patch makes has no bound.
func signatureRatios() []float64 { return []float64{50, 5000} }

// windowWeights are the parts of a test's stake on Windows.
func windowWeights() [windowCount]float64 { return [windowCount]float64{0.5, 0.25, 0.25} }

// maxMachines bounds Test.Machines.
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
	forSlices, forSignatures := part, 0.0
	if e.Kind != Silence {
		forSlices, forSignatures = part/2, part/2
	}
	for i, slice := range e.Stratum.Slices() {
		if i < len(e.Risks) {
			j.bet(&e, testKey{e.Kind, slice, ""}, forSlices/2, e.Risks[i])
		}
	}
	if e.Signature != "" && !e.Known && forSignatures > 0 {
		j.bet(&e, testKey{e.Kind, "", e.Signature}, forSignatures, e.Risks[0])
	}
	after := j.Evidence()
	if after >= j.Settings.Suspicion && after >= 2*before {
		j.Suspected = e.At
		return true
	}
	return false
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

// rankWeight is the weight of the k-th thing of a list that nobody can know in
// advance: slices and signatures in the order in which they first had an event.
// The weights c/((k+c-1)(k+c)) for k = 1, 2, ... add up to 1.
func rankWeight(k int, c float64) float64 {
	return c / ((float64(k) + c - 1) * (float64(k) + c))
}

// bet lets the test of key observe e; a new test gets its weight of part.
func (j *Judge) bet(e *Event, key testKey, part float64, risk Risk) {
	j.prepare()
	t, ok := j.index[key]
	if !ok {
		t = &Test{Kind: key.kind, Slice: key.slice, Signature: key.signature, Weight: part * j.weight(key)}
		t.Logs = make([]float64, windowCount*len(t.ratios()))
		j.index[key] = t
		j.Tests = append(j.Tests, t)
	}
	before := t.worth()
	t.observe(e, risk, j.Settings.Tolerance)
	j.sum += t.worth() - before
}

// weight is a new test's share of the stake of its sort. Slices and signatures
// are ranked in the order of their first event, whoever had it.
func (j *Judge) weight(key testKey) float64 {
	rank := 1
	for _, t := range j.Tests {
		if t.Kind == key.kind && (t.Slice != "") == (key.slice != "") && (t.Signature != "") == (key.signature != "") {
			rank++
		}
	}
	switch {
	case key.signature != "":
		return rankWeight(rank, 1)
	case key.slice != "":
		return rankWeight(rank, 4)
	}
	return 1
}

// prepare makes what is not encoded.
func (j *Judge) prepare() {
	if j.index != nil {
		return
	}
	j.index, j.sum = map[testKey]*Test{}, 0
	for _, t := range j.Tests {
		j.index[testKey{t.Kind, t.Slice, t.Signature}] = t
		j.sum += t.worth() - t.Weight
	}
}

func (t *Test) ratios() []float64 {
	if t.Signature != "" {
		return signatureRatios()
	}
	return pooledRatios()
}

// observe lets the bets win or lose. That an event strikes an exposed machine has,
// while those fail at most tolerance times as often as the others, at most the
// chance rho n1/(rho n1 + n0); a bet on ratio theta pays by the likelihood ratio of
// theta to rho.
func (t *Test) observe(e *Event, risk Risk, tolerance float64) {
	t.Events++
	if e.Patched && len(t.Machines) < maxMachines {
		t.Machines = append(t.Machines, e.Machine)
	}
	ratios := t.ratios()
	for w := range windowCount {
		hit := e.exposed(w)
		exposed, others := float64(risk.Within[w]), float64(risk.Online-risk.Within[w])
		if hit {
			t.Exposed[w]++
			exposed = max(exposed, 1)
		} else {
			others = max(others, 1)
		}
		if exposed <= 0 || others <= 0 {
			t.Expected[w] += exposed / max(exposed+others, 1)
			continue
		}
		t.Expected[w] += exposed / (exposed + others)
		for i, theta := range ratios {
			log := math.Log((tolerance*exposed + others) / (theta*exposed + others))
			if hit {
				log += math.Log(theta / tolerance)
			}
			t.Logs[w*len(ratios)+i] += log
		}
	}
}

// worth is what the test's stake has become.
func (t *Test) worth() float64 {
	sum := 0.0
	for w := range windowCount {
		sum += windowWeights()[w] * t.growth(w)
	}
	return t.Weight * sum
}

// growth is the growth of the test's bets of one window.
func (t *Test) growth(w int) float64 {
	n := len(t.ratios())
	sum := 0.0
	for _, log := range t.Logs[w*n : (w+1)*n] {
		sum += math.Exp(min(log, 600)) // e^709 is the largest float64
	}
	return sum / float64(n)
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
	evidence := 1 + j.sum
	for _, s := range attempts() {
		_, _, g := j.tries(s.kind)
		evidence += s.part * (g - 1)
	}
	return evidence
}

// Verdict is what the evidence says so far.
type Verdict string

// The verdicts.
const (
	Unknown Verdict = "unknown"
	Healthy Verdict = "healthy"
	Harmful Verdict = "harmful"
)

// Assessment is a verdict with the numbers behind it, for people.
type Assessment struct {
	Verdict Verdict   `json:"verdict"`
	At      time.Time `json:"at"`
	// Evidence is what a stake of 1 against the patch has become; Threshold, where
	// it halts.
	Evidence  float64 `json:"evidence"`
	Threshold float64 `json:"threshold"`
	// FalseHalts is the chance that a harmless patch ever gets there.
	FalseHalts float64 `json:"false_halts"`
	// Summary is one sentence.
	Summary string `json:"summary"`
	// Findings are the strongest tests, strongest first, at most 5.
	Findings []Finding `json:"findings,omitempty"`
	Progress Progress  `json:"progress"`
	Tries    Tries     `json:"tries"`
}

// Finding is one test's share of the evidence.
type Finding struct {
	Kind      Harm   `json:"kind"`
	Slice     string `json:"slice,omitempty"`
	Signature string `json:"signature,omitempty"`
	// Exposed of Events came from machines that had loaded the patch within Window
	// (0: at any time); of a harmless patch Expected would have.
	Exposed  int      `json:"exposed"`
	Events   int      `json:"events"`
	Expected float64  `json:"expected"`
	Window   Duration `json:"window"`
	// Evidence is the test's part of Assessment.Evidence.
	Evidence float64 `json:"evidence"`
	// Machines are patched machines among the events, at most 20.
	Machines []string `json:"machines,omitempty"`
	// Text says all that in one sentence.
	Text string `json:"text"`
}

// Assess gives the verdict on r's patch at now.
func (j *Judge) Assess(r *Rollout, p Progress, now time.Time) Assessment {
	a := Assessment{Verdict: Unknown, At: now, Evidence: j.Evidence(), Threshold: 1 / j.Settings.FalseHalts,
		FalseHalts: j.Settings.FalseHalts, Progress: p, Tries: j.Tries}
	needed := healthyNeeded(r.CurrentStage(), p)
	switch {
	case a.Evidence >= a.Threshold:
		a.Verdict, a.Findings = Harmful, j.findings()
		a.Summary = fmt.Sprintf("The patch hurts machines: %s", a.Findings[0].Text)
	case r.Cautious(now):
		a.Findings = j.findings()
		a.Summary = fmt.Sprintf("Not known: a suspicious report at %s is being looked into with few machines.", r.CautionSince.UTC().Format("15:04 UTC"))
	case p.Healthy < needed:
		a.Summary = fmt.Sprintf("Not known: %d machines are healthy, %d are needed.", p.Healthy, needed)
	default:
		a.Verdict, a.Findings = Healthy, j.findings()
		a.Summary = fmt.Sprintf("Healthy: %d machines got through their watch.", p.Healthy)
	}
	return a
}

// findings are the tests that hold more than their stake, strongest first.
func (j *Judge) findings() []Finding {
	var out []Finding
	for _, t := range j.Tests {
		if worth := t.worth(); worth > t.Weight {
			out = append(out, t.finding(worth))
		}
	}
	for _, s := range attempts() {
		if bad, all, g := j.tries(s.kind); g > 1 {
			out = append(out, Finding{Kind: s.kind, Exposed: bad, Events: all, Evidence: s.part * g,
				Text: fmt.Sprintf("%d of %d attempts to apply it ended as %s.", bad, all, s.kind)})
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(b.Evidence, a.Evidence) })
	return out[:min(len(out), 5)]
}

// finding tells of the test's strongest window.
func (t *Test) finding(worth float64) Finding {
	best := 0
	for w := range windowCount {
		if windowWeights()[w]*t.growth(w) > windowWeights()[best]*t.growth(best) {
			best = w
		}
	}
	f := Finding{Kind: t.Kind, Slice: t.Slice, Signature: t.Signature, Exposed: t.Exposed[best], Events: t.Events,
		Expected: t.Expected[best], Window: Duration(Windows()[best]), Evidence: worth, Machines: t.Machines}
	since := "at any time"
	if f.Window != 0 {
		since = "within " + f.Window.String()
	}
	f.Text = fmt.Sprintf("%d of %d reports of %s came from machines that had loaded the patch %s before; by chance %.2g would have.",
		f.Exposed, f.Events, describe(t.Kind, t.Slice, t.Signature), since, f.Expected)
	return f
}
