package main

import (
	"context"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
)

// program is what the verbs share.
type program struct {
	s   *cli.Streams
	now func() time.Time
	// environ is the environment, "KEY=value".
	environ []string
	// hostname is this host's name, "localhost" when it has none.
	hostname string
	// data is the data folder, config a file of settings that goes on top of the
	// data folder's own; both from flags or environment.
	data, config string
}

// run is the whole program; it returns the exit code. args are without the
// program's name.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{s: cli.NewStreams(stdin, stdout, stderr, os.Getenv), now: time.Now, environ: os.Environ(), hostname: "localhost"}
	if name, err := os.Hostname(); err == nil && name != "" {
		p.hostname = name
	}
	return cli.Run(ctx, p.command(), args, p.s)
}

// command is the tree of verbs.
func (p *program) command() *cobra.Command {
	c := &cobra.Command{
		Use:     "livepatch-server",
		Short:   "Serve livepatches to machines",
		Version: cli.Version(),
		Long: `livepatch-server is a livepatch service of your own. It enrols machines, tells
them which livepatch to run, and serves the signed stream they load it from.
Everything it keeps is in one data folder; nothing else has to be installed.`,
		Example: `  # Once: make the data folder
  livepatch-server init --data /var/lib/livepatch-server --host livepatch.example.com

  # Serve
  livepatch-server serve --data /var/lib/livepatch-server`,
	}
	c.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	c.AddCommand(p.initialise(), p.serve(), p.operator(), p.nextOnlineKeys(), p.showConfig(), p.version())
	c.InitDefaultCompletionCmd()
	return c
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return p.s.Printf("livepatch-server %s (%s, %s)", cli.Version(), runtime.GOARCH, runtime.Version())
		},
	}
}
