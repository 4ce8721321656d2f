// Package sim runs the real rollout.Decide, rollout.Advance and rollout.Judge
// against simulated fleets, and other services' halting rules beside them. It does
// no I/O; the same Config gives the same results, on any number of processors.
package sim

import (
	"runtime"
	"strings"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// Config is a fleet, a patch and how often to try.
type Config struct {
	// Machines is the size of the fleet, 1 to 1,000,000. Default 10,000.
	Machines int `json:"machines"`
	// Runs is how many rollouts of the patch to simulate. Default 200.
	Runs int `json:"runs"`
	// HealthyRuns is how many rollouts of a harmless patch to simulate on the same
	// seeds, for the false halts and the time to everybody. Default: Runs, at most
	// 100.
	HealthyRuns int `json:"healthy_runs"`
	// Seed makes runs repeatable.
	Seed uint64 `json:"seed"`
	// Lethal is the share of machines that the patch kills, 0 to 1; of the machines
	// of Stratum if that is set ("hardware=h8" is 2 % of the fleet).
	Lethal  float64 `json:"lethal"`
	Stratum string  `json:"stratum,omitempty"`
	// Delay is the median time from the load to the death. Deaths follow a Weibull
	// distribution of shape 1/2: a patched function that is often called kills
	// within seconds, another after hours. Default 3 minutes.
	Delay rollout.Duration `json:"delay"`
	// Silent is the share of the patch's deaths after which the machine is not
	// heard of again until a person comes; the others reboot. Default 0.1.
	Silent float64 `json:"silent"`
	// Background is the rate of crashes that have nothing to do with the patch, per
	// machine and hour. Default 0.001.
	Background float64 `json:"background"`
	// BadDay multiplies Background from BadDayAfter on; 0 and 1 are no bad day.
	BadDay      float64          `json:"bad_day,omitempty"`
	BadDayAfter rollout.Duration `json:"bad_day_after,omitempty"`
	// Vanish is the rate at which machines go away without a word (suspended,
	// unplugged, network lost), Leave that of orderly shutdowns, both per machine
	// and hour. Defaults 0.005 and 0.03; they come back after 4 or 6 hours in the
	// mean.
	Vanish float64 `json:"vanish"`
	Leave  float64 `json:"leave"`
	// Policy is the rollouts' policy. Default rollout.DefaultPolicy.
	Policy rollout.Policy `json:"-"`
	// Rules are the names of the rules to run. Default: all of RuleNames.
	Rules []string `json:"rules"`
	// Jobs is how many runs to simulate at the same time. Default: one for each
	// processor.
	Jobs int `json:"-"`
}

// Default is a fleet of 10,000 machines, with nothing said of the patch.
func Default() Config {
	return Config{Machines: 10_000, Runs: 200, HealthyRuns: -1, Seed: 1, Delay: rollout.Duration(3 * time.Minute), Silent: 0.1,
		Background: 0.001, Vanish: 0.005, Leave: 0.03, Policy: rollout.DefaultPolicy(), Rules: RuleNames(), Jobs: runtime.GOMAXPROCS(0)}
}

// Validate says what is wrong with the configuration.
func (c *Config) Validate() error {
	check := func(ok bool, format string, args ...any) error {
		if ok {
			return nil
		}
		return livepatch.Errorf(livepatch.CodeInvalid, format, args...)
	}
	for _, err := range []error{
		check(c.Machines >= 1 && c.Machines <= 1_000_000, "%d machines is outside 1 to 1,000,000", c.Machines),
		check(c.Runs >= 1 && c.Runs <= 1_000_000, "%d runs is outside 1 to 1,000,000", c.Runs),
		check(c.Lethal >= 0 && c.Lethal <= 1, "lethal share %g is outside 0 to 1", c.Lethal),
		check(c.Silent >= 0 && c.Silent <= 1, "silent share %g is outside 0 to 1", c.Silent),
		check(c.Background >= 0 && c.Background <= 1 && c.Vanish >= 0 && c.Vanish <= 1 && c.Leave >= 0 && c.Leave <= 1,
			"background, vanish and leave are rates per hour from 0 to 1"),
		check(c.BadDay >= 0 && c.BadDay <= 1000, "a bad day multiplies the background by 1 to 1000, not %g", c.BadDay),
		check(c.Delay > 0, "the delay is above 0"),
		check(len(c.Rules) > 0 && c.Jobs > 0, "no rules, or no jobs"),
		c.Policy.Validate(),
	} {
		if err != nil {
			return err
		}
	}
	for _, name := range c.Rules {
		if newRule(name, c) == nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "rule %q is not one of %s", name, strings.Join(RuleNames(), ", "))
		}
	}
	if c.Stratum != "" && !knownSlice(c.Stratum) {
		return livepatch.Errorf(livepatch.CodeInvalid, "stratum %q is not one of %s", c.Stratum, strings.Join(slicesOfFleet(), ", "))
	}
	if c.HealthyRuns < 0 {
		c.HealthyRuns = min(c.Runs, 100)
	}
	return nil
}

// value is one value of a dimension and the share of the fleet that has it.
type value struct {
	name  string
	share float64
}

// communityShare is the share of machines in community accounts.
const communityShare = 0.7

// The fleet's shape: a few common values and a tail, as fleets have.
func pools() []value {
	return []value{{rollout.PoolCommunity, communityShare}, {rollout.PoolPaid, 1 - communityShare}}
}

func kernels() []value {
	return []value{{"6.1.0-47-amd64", 0.5}, {"6.1.0-47-cloud-amd64", 0.4}, {"6.1.0-47-rt-amd64", 0.1}}
}

func hardware() []value {
	return []value{{"h1", 0.28}, {"h2", 0.22}, {"h3", 0.16}, {"h4", 0.12}, {"h5", 0.09}, {"h6", 0.07}, {"h7", 0.04}, {"h8", 0.02}}
}

func virts() []value { return []value{{"kvm", 0.5}, {"none", 0.3}, {"vmware", 0.2}} }

func slicesOfFleet() []string {
	var out []string
	for _, v := range kernels() {
		out = append(out, "kernel="+v.name)
	}
	for _, v := range hardware() {
		out = append(out, "hardware="+v.name)
	}
	for _, v := range virts() {
		out = append(out, "virt="+v.name)
	}
	return out
}

func knownSlice(name string) bool {
	for _, s := range slicesOfFleet() {
		if s == name {
			return true
		}
	}
	return false
}

// cell is one combination of the dimensions, with the indexes of the groups that
// its machines are counted in, in the order of Stratum.Slices.
type cell struct {
	stratum rollout.Stratum
	groups  [4]int32
	// hit tells that the patch hurts machines of this cell.
	hit   bool
	upTo  float64 // cumulated share
	share float64
}

// cellsOf lists all combinations for a patch that hurts this slice ("" for all).
func cellsOf(stratum string) (cells []cell, groups int) {
	index := map[string]int32{}
	group := func(name string) int32 {
		if _, ok := index[name]; !ok {
			index[name] = int32(len(index))
		}
		return index[name]
	}
	sum := 0.0
	for _, p := range pools() {
		for _, k := range kernels() {
			for _, h := range hardware() {
				for _, v := range virts() {
					c := cell{stratum: rollout.Stratum{Pool: p.name, Kernel: k.name, Hardware: h.name, Virt: v.name}, hit: stratum == ""}
					for i, slice := range c.stratum.Slices() {
						c.groups[i] = group(p.name + "/" + slice)
						c.hit = c.hit || slice == stratum
					}
					c.share = p.share * k.share * h.share * v.share
					sum += c.share
					c.upTo = sum
					cells = append(cells, c)
				}
			}
		}
	}
	cells[len(cells)-1].upTo = 2 // rounding must not leave a gap
	return cells, len(index)
}
