package main

import "github.com/spf13/cobra"

func (p *program) rollout() *cobra.Command {
	return group("rollout", "Roll livepatches out in stages that stop themselves", p.rolloutPolicy(), p.rolloutSimulate())
}
