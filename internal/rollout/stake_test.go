package rollout

import (
	"math"
	"testing"
)

// TestStakeIsOne: the promise holds because all bets together begin with a stake
// of 1, however many slices turn up.
func TestStakeIsOne(t *testing.T) {
	t.Parallel()
	sum := ownCodePart
	for _, s := range append(compared(), attempts()...) {
		sum += s.part
	}
	if math.Abs(sum-1) > 1e-12 {
		t.Errorf("the kinds' parts add up to %g", sum)
	}
	sum = 0
	for _, b := range bettors() {
		sum += b.weight
	}
	if math.Abs(sum-1) > 1e-12 {
		t.Errorf("the bettors' weights add up to %g", sum)
	}
	j := NewJudge(Judging{})
	e := Event{Kind: Crash, Risks: make([]Risk, 4)}
	for i := range 5000 {
		e.Stratum = Stratum{Kernel: string(rune('a' + i)), Hardware: string(rune('a' + i)), Virt: string(rune('a' + i))}
		j.Observe(e)
	}
	sum = 0
	for _, t := range j.Tests {
		sum += t.Weight
	}
	if sum > partOf(Crash)+1e-9 {
		t.Errorf("%d tests of crashes have a stake of %g, want at most %g", len(j.Tests), sum, partOf(Crash))
	}
}
