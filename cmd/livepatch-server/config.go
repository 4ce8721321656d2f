package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (p *program) showConfig() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the settings in force",
		Long: `Print the settings that serve would run with, in the form of the file they can be
set in. Later ones win: defaults, DATA/server.yaml, the file of --config, the
environment (` + envPrefix + `LISTEN and so on), flags.`,
		Example: "  livepatch-server config --data /var/lib/livepatch-server",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.settings(c)
			if err != nil {
				return fmt.Errorf("cannot read the settings: %w", err)
			}
			for _, k := range keys() {
				if err := p.s.Printf("# %s\n%s: %q", k.help, k.name, k.get(s)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	p.addFlags(c)
	return c
}
