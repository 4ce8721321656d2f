package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

func (p *program) refresh() *cobra.Command {
	var req localapi.RefreshRequest
	c := &cobra.Command{
		Use:   "refresh",
		Short: "Check with the server now and apply what it has",
		Long: `Check with the server now instead of at the next interval, and apply what it has
for this kernel. Ends when the kernel runs the patched functions or when it is
known why not.

A livepatch that was being loaded or watched when the machine went down is held
back; --retry-suspect gives what is held back another try.`,
		Example: p.examples(`
# Do not wait for the next check
sudo %[1]s refresh

# The crash had another cause: trust the livepatch again
sudo %[1]s refresh --retry-suspect`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.runRefresh(c, req) },
	}
	c.Flags().BoolVar(&req.RetrySuspect, "retry-suspect", false, "load also what is suspected of a crash")
	return c
}

func (p *program) runRefresh(c *cobra.Command, req localapi.RefreshRequest) error {
	progress := p.s.Progress("checking for patches")
	got, err := p.daemon.Refresh(c.Context(), req)
	progress.Stop()
	if err != nil {
		return p.failed("refresh", "refresh", err)
	}
	err = p.s.Printf("checking for patches")
	if got.Message != "" {
		err = errors.Join(err, p.s.Printf("%s", got.Message))
	}
	for line := range strings.Lines(localapi.Humane(got.Status, p.now(), cli.Age, false)) {
		key, _, _ := strings.Cut(line, ":")
		switch key {
		case "kernel", "patch state", "patch version":
			err = errors.Join(err, p.s.Printf("%s", strings.TrimSuffix(line, "\n")))
		}
	}
	return err
}
