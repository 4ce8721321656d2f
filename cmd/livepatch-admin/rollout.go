package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/cli"
	"livepatch/internal/rollout"
)

func (p *program) rollout() *cobra.Command {
	return group("rollout", "Roll livepatches out in stages that stop themselves",
		p.rolloutList(), p.rolloutShow(),
		p.rolloutVerb("start", "Start a rollout that was published with --hold", "Started", false),
		p.rolloutVerb("pause", "Grant nothing new for a while; open grants are void", "Paused", true),
		p.rolloutVerb("halt", "Stop a rollout: nobody else gets the patch, open grants are void", "Halted", true),
		p.rolloutVerb("resume", "Go on after a pause, or overrule a halt: the evidence begins anew", "Resumed", true),
		p.rolloutVerb("promote", "Begin the next stage now, whatever the soak", "Promoted", true),
		p.rolloutVerb("expedite", "Offer the patch to everybody at once, in freezes too", "Expedited", true),
		p.rolloutWithdraw(),
		p.rolloutPolicy(), p.rolloutSimulate())
}

// whichRollout is how a rollout is named on the command line.
const whichRollout = "ROLLOUT | RELEASE VERSION"

// findRollout finds the rollout that the arguments name: its id, or a kernel
// release and a version.
func findRollout(ctx context.Context, s *session, args []string) (api.Rollout, error) {
	if len(args) == 1 {
		return s.api.Rollout(ctx, args[0])
	}
	v, err := livepatch.ParseVersion(args[1])
	if err != nil {
		return api.Rollout{}, err
	}
	all, err := s.api.Rollouts(ctx, args[0])
	if err != nil {
		return api.Rollout{}, err
	}
	var found []api.Rollout
	for _, r := range all {
		if r.Version == v {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return api.Rollout{}, livepatch.Errorf(livepatch.CodeNotFound, "there is no rollout of livepatch %s of %s; 'livepatch-admin rollout list' shows those there are", v, args[0])
	case 1:
		return s.api.Rollout(ctx, found[0].ID)
	}
	return api.Rollout{}, livepatch.Errorf(livepatch.CodeConflict, "livepatch %s of %s is there for several architectures; name the rollout by its id", v, args[0])
}

func (p *program) rolloutList() *cobra.Command {
	var kernel string
	c := &cobra.Command{
		Use:     "list",
		Short:   "List rollouts, newest first",
		Example: examples(`livepatch-admin rollout list --kernel 6.1.0-47-cloud-amd64`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("list rollouts", err)
			}
			all, err := s.api.Rollouts(c.Context(), kernel)
			if err != nil {
				return cannot("list rollouts", err)
			}
			return p.print(all, func() error {
				t := cli.NewTable("rollout", "kernel", "livepatch", "state", "share", "policy", "drawn", "healthy", "verdict", "changed")
				for _, r := range all {
					t.Row(r.ID, r.Kernel.Release, r.Version.String(), rolloutState(r), share(r), r.Policy.Name,
						strconv.Itoa(r.Progress.Drawn), strconv.Itoa(r.Progress.Healthy), verdict(r), cli.Age(r.Changed, p.now()))
				}
				return t.Write(p.s)
			})
		},
	}
	c.Flags().StringVar(&kernel, "kernel", "", "only rollouts for this kernel `RELEASE`")
	return c
}

func rolloutState(r api.Rollout) string {
	switch {
	case r.Paused:
		return string(r.State) + ", paused"
	case r.Expedited && r.State.Moving():
		return string(r.State) + ", expedited"
	}
	return string(r.State)
}

func share(r api.Rollout) string {
	if r.Started.IsZero() {
		return "0 %"
	}
	return fmt.Sprintf("%g %%", r.CurrentStage().Share)
}

func verdict(r api.Rollout) string {
	if r.Assessment == nil || r.Assessment.Verdict == rollout.Healthy && r.Progress.Healthy == 0 {
		return string(rollout.Unknown)
	}
	return string(r.Assessment.Verdict)
}

// rolloutVerb is a command for a verb of POST /v1/rollouts/{id}/{verb}.
func (p *program) rolloutVerb(verb, short, done string, wantsReason bool) *cobra.Command {
	var reason string
	use := verb + " " + whichRollout
	example := "livepatch-admin rollout " + verb + " 6.1.0-47-cloud-amd64 3.1"
	if wantsReason {
		use += " --reason TEXT"
		example += ` --reason "seen on the staging fleet"`
	}
	c := &cobra.Command{
		Use: use, Short: short, Example: examples(example),
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if wantsReason && reason == "" {
				return cli.Usagef(c, "say why: --reason TEXT; it goes to the audit log")
			}
			s, err := p.connect()
			if err != nil {
				return cannot(verb+" rollout", err)
			}
			r, err := findRollout(c.Context(), s, args)
			if err == nil {
				r, err = s.api.Operate(c.Context(), r.ID, verb, reason)
			}
			if err != nil {
				return cannot(verb+" rollout", err)
			}
			return p.print(r, func() error {
				return p.s.Printf("%s the rollout of livepatch %s of %s; it is %s now, at %s.", done, r.Version, r.Kernel.Release, rolloutState(r), share(r))
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, in a sentence for the audit log and the owners of machines")
	return c
}

func (p *program) rolloutWithdraw() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "withdraw " + whichRollout + " --reason TEXT",
		Short: "End a rollout and take its livepatch back: machines unload it",
		Long: `End a rollout and take its livepatch back, for good, as 'patch withdraw' does: the withdrawal is signed here.
Machines that run it go back to the version before it where there is one, else unload it. Those that could
not are listed by 'report patch-health': they need a reboot.`,
		Example: examples(`livepatch-admin rollout withdraw 6.1.0-47-cloud-amd64 3.1 --reason "oopses in tcp_ack"`),
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if reason == "" {
				return cli.Usagef(c, "say why: --reason TEXT; the owners of machines read it")
			}
			s, err := p.connect()
			if err != nil {
				return cannot("withdraw livepatch", err)
			}
			r, err := findRollout(c.Context(), s, args)
			if err != nil {
				return cannot("withdraw livepatch", err)
			}
			return cannot("withdraw livepatch", p.runWithdraw(c, r.Kernel, r.Version, reason))
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, in a sentence for the owners of machines")
	return c
}
