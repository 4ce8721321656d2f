package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Run executes a command tree with args (without the program's name) on s and
// returns the exit code. Errors are printed once, mistakes in the command line
// point to the help, and every group of commands explains itself when called
// without one.
func Run(ctx context.Context, root *cobra.Command, args []string, s *Streams) int {
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.SilenceUsage, root.SilenceErrors = true, true
	addManual(root)
	prepare(root)
	err := root.ExecuteContext(ctx)
	PrintError(s.Err, root.Name(), err)
	return ExitCode(err)
}

// prepare makes every mistake in arguments and flags below c a UsageError.
func prepare(c *cobra.Command) {
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	check := c.Args
	switch {
	case check == nil && c.HasSubCommands() && !c.Runnable():
		c.Args = cobra.ArbitraryArgs
		c.RunE = group
	case check != nil:
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return usage(c, err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		prepare(sub)
	}
}

// group runs for a command that only holds others.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	msg := fmt.Sprintf("unknown command %q", args[0])
	if c.SuggestionsMinimumDistance <= 0 {
		c.SuggestionsMinimumDistance = 2
	}
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		msg += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return usage(c, errors.New(msg))
}

func usage(c *cobra.Command, err error) error {
	var already *UsageError
	if errors.As(err, &already) {
		return err
	}
	return &UsageError{Err: err, Help: c.CommandPath() + " --help"}
}

// Usagef is a mistake in the command line of c.
func Usagef(c *cobra.Command, format string, args ...any) error {
	return usage(c, fmt.Errorf(format, args...))
}

// Version is the version that the Go command stamped into the program from the
// version control, without the leading v; "devel" when it stamped none.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return strings.TrimPrefix(info.Main.Version, "v")
}
