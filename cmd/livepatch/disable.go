package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
)

func (p *program) disable() *cobra.Command {
	return &cobra.Command{
		Use:   "disable",
		Short: "Give the enrolment up",
		Long: `Give the enrolment up: the server forgets this machine, its seat is free, and no
livepatch is loaded any more. What is loaded stays in the kernel until the next
reboot; 'unload' removes it at once.`,
		Example: p.examples(`
# Leave the service and remove what it loaded
sudo %[1]s unload && sudo %[1]s disable`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.runDisable(c) },
	}
}

func (p *program) runDisable(c *cobra.Command) error {
	progress := p.s.Progress("telling the server")
	got, err := p.daemon.Disable(c.Context())
	progress.Stop()
	if err != nil {
		return p.failed("disable this machine", "disable", err)
	}
	if !got.WasEnabled {
		return p.s.Printf("This machine was not enabled; nothing to do.")
	}
	err = p.s.Printf("Successfully disabled device.")
	if len(got.Loaded) > 0 {
		err = errors.Join(err, p.s.Printf("Still in the kernel until the next reboot: %s", strings.Join(got.Loaded, ", ")))
	}
	if got.Note != "" {
		err = errors.Join(err, p.s.Printf("%s", got.Note))
	}
	return err
}
