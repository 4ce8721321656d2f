package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
)

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return p.s.Printf("%s %s (%s, %s)", p.name, cli.Version(), runtime.GOARCH, runtime.Version())
		},
	}
}
