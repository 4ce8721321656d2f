package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

// doctorPatience is how long doctor waits: the daemon may have to find out that a
// server does not answer.
const doctorPatience = time.Minute

func (p *program) doctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check every requirement and say what to do about each that fails",
		Long: `Check every requirement of livepatching on this machine, from the running daemon
to the kernel's configuration and the way to the server, and say what to do about
each that fails. Exit code 0 when all pass, 1 when one fails.`,
		Example: p.examples(`
# What does this machine lack?
%[1]s doctor`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.runDoctor(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func (p *program) runDoctor(ctx context.Context, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	progress := p.s.Progress("checking")
	found, err := p.daemon.Doctor(ctx)
	progress.Stop()
	daemon := daemonCheck(err)
	found.Checks = append([]localapi.Check{daemon}, found.Checks...)
	failed := 0
	for i, check := range found.Checks {
		if check.OK {
			continue
		}
		failed++
		if check.Remedy == "" {
			found.Checks[i].Remedy = p.remedy(livepatch.Code(check.Name))
		}
	}
	if asJSON {
		err = p.s.JSON(found)
	} else {
		err = p.printDoctor(found, failed, daemon.OK)
	}
	if err == nil && failed > 0 {
		err = cli.Silent(cli.ExitFailure)
	}
	return err
}

// remedy is what to do about a problem of status, which has the name of its code
// and says itself what is wrong.
func (p *program) remedy(code livepatch.Code) string {
	switch code {
	case livepatch.CodeSuspect, livepatch.CodeRefused, livepatch.CodeStuck:
		return "the next version is tried by itself; to try this one again run 'sudo " + p.name + " refresh --retry-suspect'"
	case livepatch.CodeUnsupported, livepatch.CodeWrongKernel:
		return "install the newest kernel of the distribution and reboot"
	case livepatch.CodeClock:
		return "set this machine's clock, then run 'sudo " + p.name + " refresh'"
	case livepatch.CodeDisk:
		return "make room on the disk of /var/lib/livepatch, then run 'sudo " + p.name + " refresh'"
	}
	return "run 'sudo " + p.name + " refresh' to try again; 'journalctl -u livepatchd' has the details"
}

// daemonCheck is the first check: it is what the others need.
func daemonCheck(err error) localapi.Check {
	check := localapi.Check{Name: "livepatchd", OK: err == nil, Found: "running"}
	if err == nil {
		return check
	}
	check.Found, check.Remedy = "no answer: "+err.Error(), "read 'journalctl -u livepatchd'"
	if livepatch.CodeOf(err) == livepatch.CodeUnavailable {
		check.Remedy = "run 'sudo systemctl start livepatchd', then this command again; if it does not stay up, read 'journalctl -u livepatchd'"
	}
	return check
}

func (p *program) printDoctor(d localapi.Doctor, failed int, answered bool) error {
	var errs []error
	for _, check := range d.Checks {
		mark := "✓"
		if !check.OK {
			mark = "✗"
		}
		errs = append(errs, p.s.Printf("%s %s: %s", p.colored(mark), check.Name, cli.OneLine(check.Found)))
		if !check.OK && check.Remedy != "" {
			errs = append(errs, p.s.Printf("    to do: %s", cli.OneLine(check.Remedy)))
		}
	}
	switch {
	case !answered:
		errs = append(errs, p.s.Printf("Without the daemon nothing else can be checked."))
	case failed == 0:
		errs = append(errs, p.s.Printf("This machine has everything that livepatching needs."))
	default:
		errs = append(errs, p.s.Printf("%s of %d failed.", cli.Count(failed, "check"), len(d.Checks)))
	}
	return errors.Join(errs...)
}
