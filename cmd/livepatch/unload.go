package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func (p *program) unload() *cobra.Command {
	return &cobra.Command{
		Use:   "unload",
		Short: "Remove the loaded livepatch from the running kernel",
		Long: `Disable the loaded livepatch, wait until no task runs its functions any more, and
remove its module. The vulnerabilities that it fixed are open again.`,
		Example: p.examples(`
# Is it the livepatch? Take it out and look
sudo %[1]s unload`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.runUnload(c) },
	}
}

func (p *program) runUnload(c *cobra.Command) error {
	progress := p.s.Progress("waiting for every task to leave the patched functions")
	got, err := p.daemon.Unload(c.Context())
	progress.Stop()
	if err != nil {
		return p.failed("unload", "unload", err)
	}
	if len(got.Unloaded) == 0 {
		err = p.s.Printf("No livepatch is loaded; nothing to do.")
	}
	for _, m := range got.Unloaded {
		err = errors.Join(err, p.s.Printf("Unloaded %s.", m))
	}
	if got.Note != "" {
		err = errors.Join(err, p.s.Printf("%s", got.Note))
	}
	return err
}
