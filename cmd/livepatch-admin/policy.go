package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
)

func (p *program) policy() *cobra.Command {
	return group("policy", "List, show and set the server's rollout policies",
		p.policyList(), p.policyShow(), p.policySet())
}

func (p *program) policyList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the server's rollout policies",
		Example: examples(`livepatch-admin policy list`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("list policies", err)
			}
			policies, err := s.api.Policies(c.Context())
			if err != nil {
				return cannot("list policies", err)
			}
			return p.print(policies, func() error {
				t := cli.NewTable("policy", "version", "stages", "freezes")
				for _, q := range policies {
					stages := ""
					for _, s := range q.Stages {
						stages += fmt.Sprintf("%s %g%% ", s.Tier, s.Share)
					}
					t.Row(q.Name, strconv.Itoa(q.Version), stages, strconv.Itoa(len(q.Freeze)))
				}
				return t.Write(p.s)
			})
		},
	}
}

func (p *program) policyShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Short:   "Show a rollout policy in the form that 'policy set' reads",
		Example: examples(`livepatch-admin policy show default > default.yaml`),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("show policy", err)
			}
			q, err := s.api.Policy(c.Context(), args[0])
			if err != nil {
				return cannot("show policy", err)
			}
			return p.print(q, func() error {
				text, err := q.YAML()
				if err != nil {
					return cannot("write policy", err)
				}
				return p.s.Printf("%s", text)
			})
		},
	}
}

func (p *program) policySet() *cobra.Command {
	return &cobra.Command{
		Use:   "set FILE",
		Short: "Store a rollout policy as the next version of its name",
		Long: `Store the policy in FILE as the next version of its name. The version in the file is the one it was made
from, as 'policy show' writes it, or 1 for a new policy; if somebody else has changed the policy since,
nothing is stored. Rollouts under way keep the policy they started with.`,
		Example: examples(`
livepatch-admin policy show default > default.yaml
livepatch-admin policy set default.yaml`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			q, err := readPolicy(args[0])
			if err != nil {
				return cannot("set policy", err)
			}
			s, err := p.connect()
			if err != nil {
				return cannot("set policy", err)
			}
			if q, err = s.api.SetPolicy(c.Context(), q); err != nil {
				return cannot("set policy", err)
			}
			return p.print(q, func() error {
				return p.s.Printf("Policy %s is at version %d. Rollouts that begin from now on follow it.", q.Name, q.Version)
			})
		},
	}
}
