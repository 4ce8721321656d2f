package main

import (
	"github.com/spf13/cobra"

	"livepatch/internal/cli"
)

func (p *program) audit() *cobra.Command {
	var n int
	c := &cobra.Command{
		Use:     "audit",
		Short:   "Show who did what, newest first",
		Example: examples(`livepatch-admin audit -n 20`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("read audit log", err)
			}
			lines, err := s.api.Audit(c.Context(), n)
			if err != nil {
				return cannot("read audit log", err)
			}
			return p.print(lines, func() error {
				t := cli.NewTable("at", "actor", "action", "object", "detail")
				for _, l := range lines {
					t.Row(cli.Time(l.At), l.Actor, l.Action, l.Object, l.Detail)
				}
				return t.Write(p.s)
			})
		},
	}
	c.Flags().IntVarP(&n, "lines", "n", 100, "how many lines, at most 1000")
	return c
}
