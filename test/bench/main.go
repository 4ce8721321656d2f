// Command bench measures what the project has budgets for, on the real programs
// against a real server on loopback, and prints each budget beside what was
// measured and beside a yardstick measured in the same run: a machine that is slow
// or busy slows both.
//
//	go run ./test/bench [-json] [-doc FILE]
//
// It runs at the root of the tree and takes about two minutes. It needs root,
// because only root may enable a machine, and neither network nor a kernel that can
// be patched: the kernel is package kerneltest's, and the daemon runs without the
// right to load modules. It exits with 1 when a budget is missed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// patience bounds the whole run, the builds included.
const patience = 10 * time.Minute

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.SetOutput(stderr)
	asJSON := set.Bool("json", false, "print JSON instead of a table")
	doc := set.String("doc", "", "also replace the table in this Markdown `file`")
	if err := set.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("only root may enable a machine, which is measured here; run it as root")
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	rows, err := measure(ctx, func(what string) { fmt.Fprintln(stderr, "bench:", what) })
	if err != nil {
		return err
	}
	if *asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		err = e.Encode(report{Machine: machine(), Rows: rows})
	} else {
		_, err = io.WriteString(stdout, table(rows))
	}
	if err == nil && *doc != "" {
		err = replaceTable(*doc, rows)
	}
	return errors.Join(err, verdict(rows))
}

// measure sets the stage, takes every figure and clears up.
func measure(ctx context.Context, tell func(string)) (rows []row, err error) {
	tell("building the programs")
	s, err := newStage(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, part := range []struct {
		what string
		take func(context.Context, *stage) ([]row, error)
	}{
		{"memory after a check-in", memory},
		{"livepatch status", status},
		{"wake-ups of an idle daemon", wakeups},
		{"bytes of a check", wire},
		{"bytes of a check on a new connection", wireAnew},
		// Last, because it publishes what the daemon above must not try to load.
		{"grant to load", grants},
	} {
		tell("measuring " + part.what)
		got, err := part.take(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part.what, err)
		}
		rows = append(rows, got...)
	}
	return rows, nil
}
