package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/api"
	"livepatch/internal/cli"
	"livepatch/internal/rollout"
)

func (p *program) rolloutShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show " + whichRollout,
		Short:   "Show how far a rollout is, what it waits for, and the evidence so far",
		Example: examples(`livepatch-admin rollout show 6.1.0-47-cloud-amd64 3.1`),
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("show rollout", err)
			}
			r, err := findRollout(c.Context(), s, args)
			if err != nil {
				return cannot("show rollout", err)
			}
			return p.print(r, func() error { return p.writeRollout(r) })
		},
	}
}

func (p *program) writeRollout(r api.Rollout) error {
	if err := p.writeState(r); err != nil {
		return err
	}
	if err := p.writeStages(r); err != nil {
		return err
	}
	if err := p.writeEvidence(r.Assessment); err != nil || len(r.Changes) == 0 {
		return err
	}
	t := cli.NewTable("at", "who", "did", "now", "why")
	for _, c := range r.Changes {
		t.Row(cli.Time(c.At), c.Actor, c.Action, fmt.Sprintf("%s (stage %d)", c.To, c.ToStage+1), c.Reason)
	}
	if err := p.s.Printf(""); err != nil {
		return err
	}
	return t.Write(p.s)
}

func (p *program) writeState(r api.Rollout) error {
	t := details()
	t.Row("rollout", r.ID)
	t.Row("livepatch", r.Version.String()+" of "+r.Kernel.String())
	t.Row("state", rolloutState(r))
	if r.Reason != "" {
		t.Row("why", r.Reason)
	}
	t.Row("policy", fmt.Sprintf("%s, version %d", r.Policy.Name, r.Policy.Version))
	t.Row("published", cli.Age(r.Created, p.now()))
	t.Row("started", cli.Age(r.Started, p.now()))
	t.Row("machines of this kernel", fmt.Sprint(r.Progress.Fleet))
	t.Row("drawn so far", fmt.Sprintf("%d of %d in this tier", r.Progress.Drawn, r.Progress.Eligible))
	t.Row("granted", fmt.Sprintf("%d, of which %d are being watched and %d healthy", r.Progress.Granted, r.Progress.Pending, r.Progress.Healthy))
	if until, why := r.Policy.FrozenUntil(p.now()); !until.IsZero() && !r.Expedited && r.State.Moving() {
		t.Row("frozen until", strings.TrimSpace(cli.Time(until)+" "+why))
	}
	draw := "committed as sha256:" + r.Commitment
	if len(r.Key) > 0 {
		draw = fmt.Sprintf("%x, the SHA-256 of which was committed", r.Key)
	}
	t.Row("key of the draws", draw)
	return t.Write(p.s)
}

// writeStages draws where in its policy the rollout is.
func (p *program) writeStages(r api.Rollout) error {
	if err := p.s.Printf(""); err != nil {
		return err
	}
	t := cli.NewTable("", "tier", "share", "healthy", "soak")
	for i, stage := range r.Policy.Stages {
		mark, healthy, soak := " ", "", rollout.Duration(stage.Soak).String()
		switch {
		case r.Started.IsZero() || i > r.Stage:
		case i < r.Stage:
			mark, soak = "+", "done"
		default:
			mark, healthy, soak = ">", fmt.Sprintf("%s %d of %d", bar(r.Progress.Healthy, r.Progress.Drawn), r.Progress.Healthy, r.Progress.Drawn), p.soakLeft(r)
		}
		t.Row(mark, string(stage.Tier), fmt.Sprintf("%g %%", stage.Share), healthy, soak)
	}
	return t.Write(p.s)
}

// soakLeft says what is left of the present stage's soak.
func (p *program) soakLeft(r api.Rollout) string {
	switch left := r.SoakedAt.Sub(p.now()); {
	case r.SoakedAt.IsZero():
		return "-"
	case left <= 0:
		return "soaked"
	case left < time.Minute:
		return "less than a minute left"
	default:
		return rollout.Duration(left.Round(time.Minute)).String() + " left"
	}
}

// bar draws n of all, "[#####---------------]".
func bar(n, all int) string {
	const width = 20
	full := 0
	if all > 0 {
		full = min(width, n*width/all)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "]"
}

// writeEvidence says what the judge holds, and on what grounds.
func (p *program) writeEvidence(a *rollout.Assessment) error {
	if a == nil {
		return nil
	}
	share := 0
	if a.Evidence > 1 && a.Threshold > 1 {
		share = min(100, int(100*math.Log(a.Evidence)/math.Log(a.Threshold)))
	}
	err := p.s.Printf("\n%s\nEvidence of harm: %.3g %s %.0f halts it (which a harmless patch reaches with a chance of %g).\nAttempts: %d applied, %d stuck, %d failed.",
		a.Summary, a.Evidence, bar(share, 100), a.Threshold, a.FalseHalts, a.Tries.Applied, a.Tries.Stuck, a.Tries.Failed)
	if err != nil {
		return err
	}
	for _, f := range a.Findings {
		line := "- " + cli.OneLine(f.Text)
		if len(f.Machines) > 0 {
			line += " Machines: " + strings.Join(f.Machines, " ")
		}
		if err := p.s.Printf("%s", line); err != nil {
			return err
		}
	}
	return nil
}
