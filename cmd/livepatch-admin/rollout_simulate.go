package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/rollout"
	"livepatch/internal/rollout/sim"
)

// simulation is what the flags of `rollout simulate` set.
type simulation struct {
	sim.Config
	policyFile, plotFile string
	delay, badDayAfter   time.Duration
}

func (p *program) rolloutSimulate() *cobra.Command {
	s := simulation{Config: sim.Default()}
	c := &cobra.Command{
		Use:   "simulate",
		Short: "Try a rollout policy on a simulated fleet",
		Long: `Roll a patch out to a simulated fleet many times, with the code that the server decides and judges with,
and count how many machines get it before the rollout is halted. Other services' halting rules run
beside it on the same fleets, at the same pace. It needs no server, and the same seed gives the same numbers.

hurt_* count the machines that got the patch before the halt (all of them where there was none), killed_*
those that died of it. false_halts and hours_to_full are of a harmless patch on the same fleets. wald_bound
is how many machines a test of crash counts alone needs in the mean.`,
		Example: examples(`
# A patch that kills one machine in twenty
livepatch-admin rollout simulate --lethal 0.05 --runs 1000 --seed 7 --plot halts.svg

# A patch that kills only one kind of hardware, 2 % of the fleet
livepatch-admin rollout simulate --lethal 0.5 --stratum hardware=h8

# A harmless patch on the day on which everything crashes ten times as often
livepatch-admin rollout simulate --lethal 0 --bad-day 10`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return cannot("simulate", p.simulate(c, &s))
		},
	}
	f := c.Flags()
	f.IntVar(&s.Machines, "machines", s.Machines, "size of the fleet, to 1,000,000")
	f.Float64Var(&s.Lethal, "lethal", s.Lethal, "share of machines that the patch kills, 0 to 1")
	f.StringVar(&s.Stratum, "stratum", "", "only machines of this `SLICE` die, for example hardware=h8 (2 % of the fleet)")
	f.DurationVar(&s.delay, "delay", time.Duration(s.Delay), "median time from load to death")
	f.Float64Var(&s.Silent, "silent", s.Silent, "share of the deaths after which nothing is heard of the machine")
	f.Float64Var(&s.Background, "background", s.Background, "crashes without the patch, per machine and hour")
	f.Float64Var(&s.BadDay, "bad-day", s.BadDay, "multiply the background by this for everybody")
	f.DurationVar(&s.badDayAfter, "bad-day-after", 0, "when the bad day begins")
	f.Float64Var(&s.Vanish, "vanish", s.Vanish, "machines that go away without a word, per machine and hour")
	f.Float64Var(&s.Leave, "leave", s.Leave, "orderly shutdowns, per machine and hour")
	f.IntVar(&s.Runs, "runs", s.Runs, "how many rollouts to simulate")
	f.IntVar(&s.HealthyRuns, "healthy-runs", s.HealthyRuns, "how many rollouts of a harmless patch to simulate (default --runs, at most 100)")
	f.Uint64Var(&s.Seed, "seed", s.Seed, "where the random numbers begin")
	f.StringSliceVar(&s.Rules, "rules", s.Rules, "`RULES` to compare")
	f.StringVar(&s.policyFile, "policy", "", "policy `FILE`, YAML or JSON (default: the built-in policy)")
	f.StringVar(&s.plotFile, "plot", "", "draw the result as SVG into this `FILE`")
	f.IntVar(&s.Jobs, "jobs", s.Jobs, "how many rollouts to simulate at the same time (default one a processor)")
	for _, name := range []string{"healthy-runs", "jobs"} {
		f.Lookup(name).DefValue = "0" // not shown
	}
	return c
}

func (p *program) simulate(c *cobra.Command, s *simulation) error {
	s.Delay, s.BadDayAfter = rollout.Duration(s.delay), rollout.Duration(s.badDayAfter)
	if s.policyFile != "" {
		var err error
		if s.Policy, err = readPolicy(s.policyFile); err != nil {
			return err
		}
	}
	if err := s.Validate(); err != nil {
		return cli.Usagef(c, "%v", err)
	}
	progress := p.s.Progress("simulate rollouts")
	defer progress.Stop()
	tenth := -1
	rows, err := sim.Run(c.Context(), s.Config, func(done, total int) {
		if t := 10 * done / total; t != tenth {
			tenth = t
			progress.Step("simulate rollouts, %d of %d", done, total)
		}
	})
	progress.Stop()
	if err != nil {
		return err
	}
	if s.plotFile != "" {
		if err := writePlot(s.plotFile, s.Config, rows); err != nil {
			return err
		}
	}
	return p.print(rows, func() error { return p.simulated(s.Config, rows) })
}

func writePlot(path string, c sim.Config, rows []sim.Row) error {
	var b strings.Builder
	if err := sim.Plot(&b, c, rows); err != nil {
		return fmt.Errorf("draw plot: %w", err)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return livepatch.Errorf(livepatch.CodeDisk, "plot is not writable: %w", err)
	}
	return nil
}

// simulated shows the rows to people.
func (p *program) simulated(c sim.Config, rows []sim.Row) error {
	count := func(f float64) string { return strconv.FormatFloat(f, 'f', 0, 64) }
	percent := func(f float64) string { return strconv.FormatFloat(100*f, 'f', 1, 64) + " %" }
	hours := func(h *float64) string {
		if h == nil {
			return "never"
		}
		return strconv.FormatFloat(*h, 'f', 1, 64) + " h"
	}
	t := cli.NewTable("rule", "halted", "before general", "hurt median", "hurt p95", "killed median", "time to halt", "false halts", "time to full")
	for _, r := range rows {
		t.Row(r.Rule, percent(r.HaltedShare), percent(r.BeforeGeneral), count(r.HurtMedian), count(r.HurtP95), count(r.KilledMedian),
			hours(r.HoursToHalt), fmt.Sprintf("%d of %d", r.FalseHalts, r.HealthyRuns), hours(r.HoursToFull))
	}
	if err := t.Write(p.s); err != nil {
		return err
	}
	if len(rows) == 0 || rows[0].WaldBound == nil {
		return nil
	}
	return p.s.Printf("\nA test of crash counts alone needs %s machines in the mean at a false-halt rate of %g (Wald's bound).\n",
		count(*rows[0].WaldBound), rollout.NewJudge(c.Policy.Judge).Settings.FalseHalts)
}
