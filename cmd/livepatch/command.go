package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

// canonicalName is the other name under which this program is installed.
const canonicalName = "canonical-livepatch"

// program is what the verbs share.
type program struct {
	// name is how the program was called, for messages that tell what to type.
	name   string
	s      *cli.Streams
	daemon *localapi.Client
	now    func() time.Time
	// root tells that the caller is root; the daemon decides, this only words
	// the advice.
	root bool
}

// run is the whole program. args[0] is the name it was called by. It returns the
// exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{
		name:   "livepatch",
		s:      cli.NewStreams(stdin, stdout, stderr, os.Getenv),
		daemon: localapi.NewClient(cmp.Or(os.Getenv("LIVEPATCH_SOCKET"), localapi.SocketPath)),
		now:    time.Now,
		root:   os.Geteuid() == 0,
	}
	if filepath.Base(args[0]) == canonicalName {
		p.name = canonicalName
	}
	return cli.Run(ctx, p.command(), args[1:], p.s)
}

// command is the tree of verbs.
func (p *program) command() *cobra.Command {
	c := &cobra.Command{
		Use:     p.name,
		Short:   "Repair the running Linux kernel without a reboot",
		Version: cli.Version(),
		Long: `Livepatch closes vulnerabilities in the running Linux kernel without a reboot.
The work is done by the daemon livepatchd; this program asks it and tells it.

Exit codes: 0 done, 1 failed or not enabled, 2 wrong usage or value, 3 needs
root, 4 daemon or server not reachable, 5 kernel or machine unsupported,
6 not trusted (signature, certificate, clock), 7 refused (token, seats),
8 the state has changed meanwhile, 130 interrupted.`,
		Example: p.examples(`
# Enrol this machine with the token that your operator gave you
sudo %[1]s enable lp_k5zq... --server https://livepatch.example.com

# Is this kernel safe?
%[1]s status

# Something is wrong: what does this machine lack?
%[1]s doctor`),
	}
	c.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	c.PersistentFlags().BoolVarP(&p.s.Quiet, "quiet", "q", false, "show no progress")
	c.AddCommand(
		p.enable(), p.disable(), p.status(), p.refresh(), p.config(), p.unload(),
		p.doctor(), p.kernelUpgradeRequired(), p.version(),
	)
	c.InitDefaultCompletionCmd()
	return c
}

// examples puts the program's name into text and indents it as cobra wants it.
func (p *program) examples(text string) string {
	return indent(fmt.Sprintf(text, p.name))
}

// failed words an error of the daemon for the edge: "cannot do: why", with the
// advice to be root where that is what lacks.
func (p *program) failed(what, verb string, err error) error {
	if livepatch.CodeOf(err) == livepatch.CodeNotPrivileged && !p.root {
		return &livepatch.Error{
			Code:    livepatch.CodeNotPrivileged,
			Message: fmt.Sprintf("cannot %s: only root may do this; try 'sudo %s %s'", what, p.name, verb),
			Err:     err,
		}
	}
	if livepatch.CodeOf(err) == livepatch.CodeNotEnabled {
		return p.notEnabled()
	}
	return fmt.Errorf("cannot %s: %w", what, err)
}

// notEnabled prints what programs look for when the machine is not enabled, on
// standard error and with nothing before it.
func (p *program) notEnabled() error {
	_, err := fmt.Fprintf(p.s.Err, "Machine is not enabled. Please run 'sudo %s enable' with the\n"+
		"token that the operator of your Livepatch server gave you.\n", p.name)
	return errors.Join(err, cli.Silent(cli.ExitFailure))
}
