package sim

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"livepatch"
)

// small is a configuration that a test can afford.
func small(change func(*Config)) Config {
	c := Default()
	c.Machines, c.Runs, c.HealthyRuns, c.Seed, c.Rules = 3000, 20, 4, 11, []string{"livepatch"}
	if change != nil {
		change(&c)
	}
	return c
}

func simulated(t *testing.T, c Config) []Row {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	rows, err := Run(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestSameSeedSameNumbers: on any number of processors, under any other rules.
func TestSameSeedSameNumbers(t *testing.T) {
	t.Parallel()
	c := small(func(c *Config) { c.Lethal, c.Runs, c.Jobs = 0.05, 6, 1 })
	alone := simulated(t, c)
	c.Jobs, c.Rules = 3, []string{"sprt", "livepatch"}
	if both := simulated(t, c); !reflect.DeepEqual(alone[0], both[1]) {
		t.Errorf("got %+v alone and %+v beside another rule", alone[0], both[1])
	}
	c.Seed++
	if other := simulated(t, c); reflect.DeepEqual(alone[0], other[1]) {
		t.Error("another seed gives the same numbers")
	}
}

func TestLethalIsHalted(t *testing.T) {
	t.Parallel()
	row := simulated(t, small(func(c *Config) { c.Lethal = 0.05 }))[0]
	if row.HaltedShare != 1 || row.BeforeGeneral != 1 || row.HurtMedian > 120 || row.HoursToHalt == nil {
		t.Errorf("5 %% lethal: %+v", row)
	}
	if row.FalseHalts != 0 || row.HoursToFull == nil || *row.HoursToFull > 96 {
		t.Errorf("harmless: %+v", row)
	}
}

// TestRareHardwareIsSaved: a crash on 2 % of the fleet is seen before general.
func TestRareHardwareIsSaved(t *testing.T) {
	t.Parallel()
	row := simulated(t, small(func(c *Config) { c.Machines, c.Lethal, c.Stratum = 6000, 0.5, "hardware=h8" }))[0]
	if row.BeforeGeneral != 1 {
		t.Errorf("%+v", row)
	}
}

// TestBadDay: when everything crashes ten times as often, the patch is not blamed
// by the judge, and is by a rule that knows no control group.
func TestBadDay(t *testing.T) {
	t.Parallel()
	rows := simulated(t, small(func(c *Config) {
		c.Runs, c.BadDay, c.Rules = 8, 10, []string{"livepatch", "sprt"}
	}))
	if rows[0].HaltedShare != 0 || rows[0].HoursToFull == nil {
		t.Errorf("the judge: %+v", rows[0])
	}
	if rows[1].HaltedShare < 0.5 {
		t.Errorf("the bad day was not bad: %+v", rows[1])
	}
}

// TestSilentDeathsAreHeard: no machine ever says what happened to it.
func TestSilentDeathsAreHeard(t *testing.T) {
	t.Parallel()
	row := simulated(t, small(func(c *Config) { c.Lethal, c.Silent, c.Runs = 0.1, 1, 10 }))[0]
	if row.HaltedShare < 0.9 {
		t.Errorf("%+v", row)
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	c := Config{Machines: 10_000}
	// fails feeds outcomes, every nth a failure, and returns how many loads it took
	// to halt; 0 for never.
	fails := func(name string, nth int) int {
		r := newRule(name, &c)
		for n := range c.Machines {
			r.granted(n)
			if n%nth == nth-1 {
				if r.failed(n) {
					return n + 1
				}
			} else {
				r.success(n)
			}
		}
		return 0
	}
	for _, tt := range []struct {
		rule string
		nth  int
		want int
	}{
		{"hawkbit-1", 20, 220}, // the 11th failure in a group of 1000 is above 1 %
		{"hawkbit-10", 20, 0},
		{"hawkbit-10", 5, 505},
		{"lvfs", 20, 0},
		{"lvfs", 2, 10},
		{"nebraska", 20, 200},
		{"nebraska", 1, 1},
		{"sprt", 20, 100},
		{"sprt", 2000, 0},
		{"livepatch", 2, 0}, // judged elsewhere
	} {
		if got := fails(tt.rule, tt.nth); got != tt.want {
			t.Errorf("%s with every %dth load a failure halts after %d, want %d", tt.rule, tt.nth, got, tt.want)
		}
	}
}

func TestWaldBound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ p1, want float64 }{{0.05, 62}, {0.01, 655}} {
		if got := WaldBound(0.001, tt.p1, 1e-4); math.Abs(got-tt.want) > 1 {
			t.Errorf("bound at %g is %g, want %g", tt.p1, got, tt.want)
		}
	}
	if got := WaldBound(0.001, 0.001, 1e-4); !math.IsInf(got, 1) {
		t.Errorf("nothing to tell apart takes %g machines", got)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"no machines":  func(c *Config) { c.Machines = 0 },
		"too many":     func(c *Config) { c.Machines = 1_000_001 },
		"lethal 2":     func(c *Config) { c.Lethal = 2 },
		"lethal NaN":   func(c *Config) { c.Lethal = math.NaN() },
		"unknown rule": func(c *Config) { c.Rules = []string{"coin"} },
		"odd stratum":  func(c *Config) { c.Stratum = "hardware=h99" },
		"no delay":     func(c *Config) { c.Delay = 0 },
		"odd policy":   func(c *Config) { c.Policy.Stages = nil },
	} {
		c := small(change)
		if err := c.Validate(); livepatch.CodeOf(err) != livepatch.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRunStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, small(nil), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestPlot: the plot is well-formed and names each rule and the bound.
func TestPlot(t *testing.T) {
	t.Parallel()
	c := small(func(c *Config) { c.Runs, c.HealthyRuns, c.Lethal, c.Machines, c.Rules = 3, 1, 0.2, 500, RuleNames() })
	rows := simulated(t, c)
	var b strings.Builder
	if err := Plot(&b, c, rows); err != nil {
		t.Fatal(err)
	}
	var texts []string
	d := xml.NewDecoder(strings.NewReader(b.String()))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := token.(xml.CharData); ok {
			texts = append(texts, string(s))
		}
	}
	for _, want := range append(RuleNames(), "bound for counts alone") {
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("the plot does not name %s", want)
		}
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	v := []float64{5, 1, 4, 2, 3}
	if m, p, z := quantile(v, 0.5), quantile(v, 0.95), quantile(nil, 0.5); m != 3 || p != 5 || z != 0 {
		t.Errorf("median %g, p95 %g, of nothing %g", m, p, z)
	}
}
