package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
)

// program is what the verbs share.
type program struct {
	s      *cli.Streams
	getenv func(string) string
	now    func() time.Time
	random io.Reader
	// boot is where kernels are, for their build ids.
	boot string

	// json and configPath are global flags.
	json       bool
	configPath string
}

// run is the whole program: it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{
		s:      cli.NewStreams(stdin, stdout, stderr, os.Getenv),
		getenv: os.Getenv,
		now:    time.Now,
		random: rand.Reader,
		boot:   "/boot",
	}
	return cli.Run(ctx, p.command(), args, p.s)
}

// command is the tree of verbs.
func (p *program) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "livepatch-admin",
		Short:   "Operate a Livepatch server",
		Version: cli.Version(),
		Long: `Operate a Livepatch server: accounts and their tokens, enrolled machines, signing keys, and the
livepatches that machines get. What is published is signed here, with keys that the server never sees.

The server's address and the operator's token are read from a configuration file: --config, else
$LIVEPATCH_ADMIN_CONFIG, else ~/.config/livepatch/admin.yaml. 'livepatch-server init' writes one.`,
		Example: examples(`
# Let a machine in
livepatch-admin account create example.com
livepatch-admin token create example.com

# Publish a livepatch for the kernel it was built for
livepatch-admin publish lp.ko --fixes CVE-2026-1234:high --kernel-image vmlinuz

# Who runs it?
livepatch-admin patch list
livepatch-admin machine list`),
	}
	c.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	f := c.PersistentFlags()
	f.BoolVar(&p.json, "json", false, "print the result as JSON")
	f.BoolVarP(&p.s.Quiet, "quiet", "q", false, "show no progress")
	f.StringVar(&p.configPath, "config", "", "configuration `FILE` (default $LIVEPATCH_ADMIN_CONFIG or ~/.config/livepatch/admin.yaml)")
	c.AddCommand(
		p.account(), p.token(), p.machine(),
		p.build(), p.publish(), p.patch(), p.inspect(),
		p.rollout(), p.policy(), p.report(),
		p.keys(), p.sign(), p.signModule(),
		p.audit(), p.version(),
	)
	c.InitDefaultCompletionCmd()
	return c
}

// group makes a command that only holds others.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(verbs...)
	return c
}

// examples indents text as cobra shows examples.
func examples(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = "  " + line
		}
	}
	return strings.Join(lines, "\n")
}

// print shows a result: as JSON when that was asked for, else by what text writes.
func (p *program) print(v any, text func() error) error {
	if p.json {
		return p.s.JSON(v)
	}
	return text()
}

// cannot words an error at the edge: "cannot do: why".
func cannot(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}

// details is the table of one thing.
func details() *cli.Table { return cli.NewTable("what", "value") }
