package main

import (
	"runtime"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
)

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program",
		Example: examples(`livepatch-admin version --json`),
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": cli.Version(), "go": runtime.Version()}
			return p.print(v, func() error { return p.s.Printf("livepatch-admin %s", cli.Version()) })
		},
	}
}
