package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"livepatch/internal/api"
	"livepatch/internal/cli"
)

func (p *program) account() *cobra.Command {
	return group("account", "Make and list accounts, which own machines", p.accountCreate(), p.accountList())
}

func (p *program) accountCreate() *cobra.Command {
	var plan string
	var limit int
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an account",
		Example: examples(`
# Three machines
livepatch-admin account create example.com

# As many as were agreed on
livepatch-admin account create example.com --plan standard --limit 250`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("create account", err)
			}
			a, err := s.api.CreateAccount(c.Context(), api.NewAccount{Name: args[0], Plan: plan, Limit: limit})
			if err != nil {
				return cannot("create account", err)
			}
			return p.print(a, func() error {
				return p.s.Printf("Created account %s (%s) on plan %s, for %s.", a.Name, a.ID, a.Plan, cli.Count(a.Limit, "machine"))
			})
		},
	}
	c.Flags().StringVar(&plan, "plan", "community", "`PLAN`: community, essential, standard or advanced")
	c.Flags().IntVar(&limit, "limit", 0, "`NUMBER` of machines it may enrol (default the plan's)")
	return c
}

func (p *program) accountList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List accounts",
		Example: examples(`livepatch-admin account list`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("list accounts", err)
			}
			accounts, err := s.api.Accounts(c.Context())
			if err != nil {
				return cannot("list accounts", err)
			}
			return p.print(accounts, func() error {
				t := cli.NewTable("name", "id", "plan", "machines", "limit", "created")
				for _, a := range accounts {
					t.Row(a.Name, a.ID, a.Plan, strconv.Itoa(a.Machines), strconv.Itoa(a.Limit), cli.Time(a.Created))
				}
				return t.Write(p.s)
			})
		},
	}
}
