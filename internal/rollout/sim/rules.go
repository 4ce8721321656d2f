package sim

import "math"

// judged is the rule of the real judge.
const judged = "livepatch"

// RuleNames lists the rules, ours first.
func RuleNames() []string {
	return []string{judged, "hawkbit-1", "hawkbit-10", "lvfs", "nebraska", "sprt"}
}

// The rules' settings; hawkBit's threshold is part of the rule's name.
const (
	sprtP0, sprtP1      = 0.001, 0.01
	sprtAlpha, sprtBeta = 1e-4, 1e-3
	hawkbitGroups       = 10
	lvfsFailures        = 5
	lvfsSuccess         = 0.7
	nebraskaTimeOuts    = 10
)

// rule is another service's rule for when to halt. All rules share the pace of the
// policy, so that only the rule differs. They see a machine's outcome: success
// when it got through its watch, failure when it rebooted unexpectedly within the
// hour after its load (after a success that counts too), and silence.
type rule interface {
	// granted tells of the n-th load, from 0.
	granted(n int)
	// success, failed and silent tell of the outcome of the n-th load, and whether
	// to halt.
	success(n int)
	failed(n int) (halt bool)
	silent(n int) (halt bool)
	// left tells that the machine left in good order, back that it came back after
	// silence.
	left(n int)
	back(n int)
	// hold tells that nothing may be granted for now.
	hold() bool
}

// together groups the indexes of rules: those that only watch can share one run,
// those that change its pace run alone.
func together(names []string) [][]int {
	var groups [][]int
	var watchers []int
	for i, name := range names {
		if name == judged || name == "nebraska" {
			groups = append(groups, []int{i})
		} else {
			watchers = append(watchers, i)
		}
	}
	if len(watchers) > 0 {
		groups = append(groups, watchers)
	}
	return groups
}

// newRule makes a rule for a fleet; nil when there is none of this name. The rule
// judged judges nothing here.
func newRule(name string, c *Config) rule {
	switch name {
	case judged:
		return &never{}
	case "hawkbit-1":
		return &hawkbit{size: groupSize(c.Machines), threshold: 0.01}
	case "hawkbit-10":
		return &hawkbit{size: groupSize(c.Machines), threshold: 0.1}
	case "lvfs":
		return &lvfs{}
	case "nebraska":
		return &nebraska{}
	case "sprt":
		return &sprt{}
	}
	return nil
}

func groupSize(machines int) int { return max(1, (machines+hawkbitGroups-1)/hawkbitGroups) }

// never is the rule that never halts.
type never struct{}

func (never) granted(int)     {}
func (never) success(int)     {}
func (never) failed(int) bool { return false }
func (never) silent(int) bool { return false }
func (never) left(int)        {}
func (never) back(int)        {}
func (never) hold() bool      { return false }

// hawkbit deploys to ten equal groups one after the other and halts when more than
// threshold of a group have failed. Silence is no failure to it.
type hawkbit struct {
	never
	size      int
	threshold float64
	failures  [hawkbitGroups]int
}

func (h *hawkbit) failed(n int) bool {
	g := min(n/h.size, hawkbitGroups-1)
	h.failures[g]++
	return float64(h.failures[g])/float64(h.size) > h.threshold
}

// lvfs halts at five failures when less than 70 % of the reports are successes.
type lvfs struct {
	never
	failures, successes int
}

func (l *lvfs) success(int) { l.successes++ }

func (l *lvfs) failed(int) bool {
	l.failures++
	return l.failures >= lvfsFailures && float64(l.successes) < lvfsSuccess*float64(l.failures+l.successes)
}

// nebraska is its safe mode: the first machine goes alone, and halts the rollout
// if it fails. After that updates stop when as many have timed out as may be in
// progress. Whoever crashes or falls silent in its watch has timed out, until it is
// heard of again after silence; what happens later is not seen.
type nebraska struct {
	waiting  bool // for the first machine
	timeOuts int
	complete []bool // by load
}

func (r *nebraska) granted(n int) {
	r.waiting = r.waiting || n == 0
	r.complete = append(r.complete, false)
}

func (r *nebraska) hold() bool { return r.waiting }
func (r *nebraska) left(n int) { r.waiting = r.waiting && n != 0 }
func (r *nebraska) back(int)   { r.timeOuts-- }

func (r *nebraska) success(n int) {
	r.left(n)
	r.complete[n] = true
}

func (r *nebraska) failed(n int) bool {
	if r.complete[n] {
		return false
	}
	r.timeOuts++
	return n == 0 || r.timeOuts >= nebraskaTimeOuts
}

func (r *nebraska) silent(n int) bool { return r.failed(n) }

// sprt is Wald's test of a failure rate of 0.1 % against 1 %. Once it accepts the
// lower rate it is over.
type sprt struct {
	never
	log      float64
	accepted bool
}

func (s *sprt) success(int) {
	s.log += math.Log((1 - sprtP1) / (1 - sprtP0))
	s.accepted = s.accepted || s.log <= math.Log(sprtBeta/(1-sprtAlpha))
}

func (s *sprt) failed(int) bool {
	s.log += math.Log(sprtP1 / sprtP0)
	return !s.accepted && s.log >= math.Log((1-sprtBeta)/sprtAlpha)
}

// WaldBound is how many machines a test of counts alone needs in the mean to tell
// failure rate p1 from a background of p0 with a false-halt rate of alpha:
// ln(1/alpha) / KL(p1, p0).
func WaldBound(p0, p1, alpha float64) float64 {
	if p1 <= p0 || p0 <= 0 {
		return math.Inf(1)
	}
	kl := p1 * math.Log(p1/p0)
	if p1 < 1 {
		kl += (1 - p1) * math.Log((1-p1)/(1-p0))
	}
	return math.Log(1/alpha) / kl
}
