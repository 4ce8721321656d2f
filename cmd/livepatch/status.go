package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

// statusPatience is how long status waits for the daemon, which answers from
// memory in milliseconds.
const statusPatience = 30 * time.Second

func (p *program) status() *cobra.Command {
	var verbose, asJSON bool
	var format string
	c := &cobra.Command{
		Use:   "status",
		Short: "Tell whether this kernel is covered and patched",
		Long: `Tell on one screen whether the running kernel is covered, what is loaded, which
vulnerabilities that fixes, what is outstanding, what went wrong, and when this
machine last checked in. Everybody may ask.

The default format is humane on a terminal and yaml otherwise. Exit code 0 when
the machine is enabled, whatever its state; 1 when it is not.`,
		Example: p.examples(`
# One screen
%[1]s status

# Every fixed vulnerability with its description
%[1]s status --verbose

# For programs
%[1]s status --format json | jq -r '.Status[0].Livepatch.State'`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON && format != "" && format != "json" {
				return cli.Usagef(c, "--json and --format %s are two formats: choose one", format)
			}
			if asJSON {
				format = "json"
			}
			write, err := p.statusWriter(c, format, verbose)
			if err != nil {
				return err
			}
			return p.runStatus(c.Context(), write)
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "describe every fix")
	c.Flags().StringVar(&format, "format", "", "humane, json or yaml (default: humane on a terminal, else yaml)")
	c.Flags().BoolVar(&asJSON, "json", false, "the same as --format json")
	formats(c, "humane", "json", "yaml")
	return c
}

// statusWriter chooses the text form before the daemon is asked, so that a wrong
// flag is told first.
func (p *program) statusWriter(c *cobra.Command, format string, verbose bool) (func(localapi.Status) error, error) {
	if format == "" {
		format = "yaml"
		if p.s.OutTerminal {
			format = "humane"
		}
	}
	switch format {
	case "humane":
		return func(st localapi.Status) error {
			_, err := io.WriteString(p.s.Out, p.colored(localapi.Humane(st, p.now(), cli.Age, verbose)))
			return err
		}, nil
	case "json":
		return func(st localapi.Status) error { return p.s.JSON(st.Complete()) }, nil
	case "yaml":
		return func(st localapi.Status) error {
			b, err := localapi.YAML(st)
			if err == nil {
				_, err = p.s.Out.Write(b)
			}
			return err
		}, nil
	}
	return nil, cli.Usagef(c, "unknown format %q: choose humane, json or yaml", format)
}

func (p *program) runStatus(ctx context.Context, write func(localapi.Status) error) error {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	progress := p.s.Progress("waiting for livepatchd")
	st, err := p.daemon.Status(ctx)
	progress.Stop()
	if err != nil {
		return p.failed("tell the status", "status", err)
	}
	if err := write(st); err != nil {
		return fmt.Errorf("cannot write the status: %w", err)
	}
	return nil
}

// formats completes the values of --format.
func formats(c *cobra.Command, names ...string) {
	err := c.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(err) // no such flag: a mistake in this file
	}
}
