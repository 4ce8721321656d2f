package main

import (
	"github.com/spf13/cobra"

	"livepatch"
)

func (p *program) machineTier() *cobra.Command {
	return &cobra.Command{
		Use:   "tier MACHINE canary|early|general|plan",
		Short: "Choose the first tier that a machine gets new livepatches in",
		Long: `Choose the first tier that a machine gets new livepatches in. Machines of paid plans are in general; their
owners may opt in to canary or early, and out again with general or plan. Community machines are canaries
in any case.`,
		Example:   examples(`livepatch-admin machine tier web1 canary`),
		Args:      cobra.ExactArgs(2),
		ValidArgs: []string{"canary", "early", "general", "plan"},
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("choose tier", err)
			}
			tier := livepatch.Tier(args[1])
			if tier == "plan" {
				tier = ""
			}
			m, err := s.api.SetTier(c.Context(), args[0], tier)
			if err != nil {
				return cannot("choose tier", err)
			}
			return p.print(m, func() error {
				return p.s.Printf("Machine %s gets livepatches from tier %s on.", m.ID, m.Tier)
			})
		},
	}
}
