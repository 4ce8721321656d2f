package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

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

// Finding is one test's part of the evidence, or what is known of one signature.
type Finding struct {
	Kind      Harm   `json:"kind"`
	Slice     string `json:"slice,omitempty"`
	Signature string `json:"signature,omitempty"`
	// Patched of Events came from machines that had loaded the patch no longer than
	// Within before (0: at any time); by chance Expected would have.
	Patched  int      `json:"patched"`
	Events   int      `json:"events"`
	Expected float64  `json:"expected"`
	Within   Duration `json:"within,omitempty"`
	// Evidence is the test's part of Assessment.Evidence; 0 for signatures, which
	// weigh in the tests.
	Evidence float64 `json:"evidence,omitempty"`
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

// findings are the tests that hold more than their stake, strongest first, and the
// signatures that patched machines had more often than by chance.
func (j *Judge) findings() []Finding {
	var out []Finding
	for _, t := range j.Tests {
		if worth := t.worth(); worth > t.Weight {
			out = append(out, t.finding(worth))
		}
	}
	if worth := j.Own.worth(); worth > ownCodePart && j.Own.Crashes > 0 {
		text := fmt.Sprintf("%d crashes were in the patch's own code.", j.Own.Crashes)
		if j.Own.Crashes == 1 {
			text = "1 crash was in the patch's own code."
		}
		out = append(out, Finding{Kind: Crash, Patched: j.Own.Crashes, Events: j.Own.Crashes, Evidence: worth, Machines: j.Own.Machines, Text: text})
	}
	for _, s := range attempts() {
		if bad, all, g := j.tries(s.kind); g > 1 {
			out = append(out, Finding{Kind: s.kind, Patched: bad, Events: all, Evidence: s.part * g,
				Text: fmt.Sprintf("%d of %d attempts to apply it ended as %s.", bad, all, s.kind)})
		}
	}
	slices.SortStableFunc(out, func(a, b Finding) int { return cmp.Compare(b.Evidence, a.Evidence) })
	out = out[:min(len(out), 5)]
	signatures := j.signatures()
	return append(out, signatures[:min(len(signatures), 5)]...)
}

// signatures are the findings on signatures, most frequent first.
func (j *Judge) signatures() []Finding {
	var out []Finding
	for name, s := range j.Signatures {
		if s.Patched == 0 || float64(s.Patched) <= s.Expected {
			continue
		}
		kind, signature, _ := strings.Cut(name, " ")
		f := Finding{Kind: Harm(kind), Signature: signature, Patched: s.Patched, Events: s.Patched + s.Others,
			Expected: s.Expected, Machines: s.Machines}
		f.Text = f.sentence()
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Patched, a.Patched), cmp.Compare(a.Signature, b.Signature))
	})
	return out
}

// finding tells of the window after the load in which the test's machines failed
// most out of proportion.
func (t *Test) finding(worth float64) Finding {
	f := Finding{Kind: t.Kind, Slice: t.Slice, Events: t.Events, Evidence: worth, Machines: t.Machines}
	patched, expected, best := 0, 0.0, -1.0
	for w, limit := range Windows() {
		patched += t.Patched[w]
		expected += t.Expected[w]
		if excess := float64(patched) - expected; excess > best {
			best = excess
			f.Patched, f.Expected, f.Within = patched, expected, Duration(limit)
		}
	}
	f.Text = f.sentence()
	return f
}

// sentence says what f says.
func (f *Finding) sentence() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d reports of %s", f.Patched, f.Events, f.Kind)
	if f.Signature != "" {
		fmt.Fprintf(&b, " with signature %s", f.Signature)
	}
	if f.Slice != "" {
		fmt.Fprintf(&b, " on machines with %s", f.Slice)
	}
	b.WriteString(" came from machines that had loaded the patch")
	if f.Within != 0 {
		fmt.Fprintf(&b, " within %s before", f.Within)
	}
	fmt.Fprintf(&b, "; by chance %.2g would have.", f.Expected)
	return b.String()
}
