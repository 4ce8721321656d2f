package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

// maxToken bounds what is read of a token from standard input, in bytes.
const maxToken = 4096

func (p *program) enable() *cobra.Command {
	var req localapi.EnableRequest
	c := &cobra.Command{
		Use:   "enable TOKEN",
		Short: "Enrol this machine and start patching its kernel",
		Long: `Enrol this machine with a Livepatch server and start patching its kernel.

The token is exchanged for a credential of this machine's own and not kept here.
With - as the token it is read from standard input, where other users' process
listings do not show it.`,
		Example: p.examples(`
# The command that the token page prints: server, token, and the
# fingerprint of the stream's first root
sudo %[1]s enable lp_k5zq... --server https://livepatch.example.com \
    --trust sha256:3f6c...

# Keep the token out of the process list
sudo %[1]s enable - < token.txt`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if req.Token, err = p.token(c, args[0]); err != nil {
				return err
			}
			return p.runEnable(c, req)
		},
	}
	c.Flags().StringVar(&req.Server, "server", "", "URL of the server (default: the setting remote-server)")
	c.Flags().StringVar(&req.Trust, "trust", "", "fingerprint of the stream's first root, sha256:...")
	return c
}

// token is arg, or what standard input has when arg is "-".
func (p *program) token(c *cobra.Command, arg string) (string, error) {
	if arg != "-" {
		return strings.TrimSpace(arg), nil
	}
	b, err := io.ReadAll(io.LimitReader(p.s.In, maxToken))
	if err != nil {
		return "", p.failed("read the token from standard input", "enable -", err)
	}
	if t := strings.TrimSpace(string(b)); t != "" {
		return t, nil
	}
	return "", cli.Usagef(c, "standard input holds no token")
}

func (p *program) runEnable(c *cobra.Command, req localapi.EnableRequest) error {
	progress := p.s.Progress("enrolling this machine")
	got, err := p.daemon.Enable(c.Context(), req)
	progress.Stop()
	if livepatch.CodeOf(err) == livepatch.CodeUnsupported {
		err = fmt.Errorf("unsupported kernel or machine: %w", err) // ubuntu-pro looks for "unsupported kernel"
	}
	if err != nil {
		return p.failed("enable this machine", "enable TOKEN", err)
	}
	err = p.s.Printf("Successfully enabled device.\nmachine id: %s\naccount: %s\ntier: %s\ntrust: %s",
		got.MachineID, got.Account, got.Tier, localapi.Trust(got.Trusted))
	return errors.Join(err, p.s.Printf("See '%s status' for what is patched.", p.name))
}
