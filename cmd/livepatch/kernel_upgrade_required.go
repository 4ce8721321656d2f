package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/localapi"
)

// motdPatience bounds kernel-upgrade-required: it runs in every login, and a
// daemon that hangs must not hang those.
const motdPatience = 1500 * time.Millisecond

func (p *program) kernelUpgradeRequired() *cobra.Command {
	return &cobra.Command{
		Use:   "kernel-upgrade-required",
		Short: "Say so when only a newer kernel closes what is open",
		Long: `Print a sentence when only a newer kernel and a reboot close what is open in the
running one; else print nothing. Made for the message of the day: it ends within
two seconds and with exit code 0, also when the daemon does not answer.`,
		Example: p.examples(`
# In a script: is there something to say?
test -z "$(%[1]s kernel-upgrade-required)" || echo "plan a reboot"`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), motdPatience)
			defer cancel()
			st, err := p.daemon.Status(ctx)
			if err != nil {
				return nil // no answer is no reason to disturb a login
			}
			if why := localapi.UpgradeRequired(st); why != "" {
				return p.s.Printf("Livepatch: %s", why)
			}
			return nil
		},
	}
}
