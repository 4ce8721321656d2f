// Command fixes builds a livepatch from every real kernel fix in a folder, loads each
// that is built in a virtual machine with the kernel it is for, and writes a table of
// what became of them.
//
// The folder has the diffs and an INDEX.tsv with the columns file, patch, object,
// reference_verdict, functions, reason, likely_cve.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"livepatch/internal/builder"
	"livepatch/internal/cli"
	"livepatch/test/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "fixes:", err)
		os.Exit(1)
	}
}

// fix is one row of the index and what became of it.
type fix struct {
	dir, file, patch, object, verdict, functions, reason string

	report *builder.Report
	// failed is an error of the builder that is no refusal.
	failed error
	module string
	// loaded is "yes", or what went wrong in the machine; empty when not tried.
	loaded string
	// shown is what the kernel did before and after, where a reproducer shows it.
	shown string
}

func run(ctx context.Context, args []string, log io.Writer) error {
	flags := flag.NewFlagSet("fixes", flag.ContinueOnError)
	dir := flags.String("dir", "../shared/fixes", "folder with the diffs and INDEX.tsv")
	out := flags.String("o", "docs/fixes.md", "table to write")
	only := flags.String("only", "", "only fixes whose name contains this")
	noVM := flags.Bool("no-vm", false, "build only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l, err := lab.New(func(format string, args ...any) { fmt.Fprintf(log, format+"\n", args...) })
	if err != nil {
		return err
	}
	fixes, err := readIndex(*dir, *only)
	if err != nil {
		return err
	}
	own, err := readIndex(filepath.Join(l.Root, "test", "fixes", "own"), *only)
	if err != nil {
		return err
	}
	fixes = append(fixes, own...)
	modules, err := os.MkdirTemp("", "livepatch-fixes-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(modules) //nolint:errcheck // a temporary folder
	for i, f := range fixes {
		f.build(ctx, l.Cache, modules)
		fmt.Fprintf(log, "%d/%d %s: %s\n", i+1, len(fixes), f.file, f.result())
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if !*noVM {
		if err := load(ctx, l, fixes, log); err != nil {
			return err
		}
	}
	return os.WriteFile(*out, []byte(table(fixes)), 0o644)
}

func readIndex(dir, only string) ([]*fix, error) {
	b, err := os.ReadFile(filepath.Join(dir, "INDEX.tsv"))
	if err != nil {
		return nil, fmt.Errorf("read the index of fixes: %w", err)
	}
	var fixes []*fix
	for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		col := strings.Split(line+strings.Repeat("\t", 6), "\t")
		if i > 0 && strings.Contains(col[1], only) {
			fixes = append(fixes, &fix{dir: dir, file: col[0], patch: col[1], object: col[2], verdict: col[3], functions: col[4], reason: col[5]})
		}
	}
	return fixes, nil
}

// build builds the fix's module into the folder.
func (f *fix) build(ctx context.Context, cache, modules string) {
	diff, err := os.ReadFile(filepath.Join(f.dir, f.patch))
	if err != nil {
		f.report, f.failed = &builder.Report{}, err
		return
	}
	name := "lp_" + strings.NewReplacer("-", "_", ".", "_").Replace(strings.TrimSuffix(f.patch, ".patch"))
	name = name[:min(len(name), 50)]
	bd := &builder.Builder{Cache: cache}
	module, report, err := bd.Build(ctx, builder.Request{Release: lab.Release, Diffs: [][]byte{diff}, Name: name})
	f.report = report
	var refused *builder.RefusedError
	switch {
	case errors.As(err, &refused):
	case err != nil:
		f.failed = err
	default:
		f.module = filepath.Join(modules, name+".ko")
		f.failed = os.WriteFile(f.module, module, 0o644)
	}
}

// result is one word for the table, and the reasons of a refusal.
func (f *fix) result() string {
	switch {
	case f.failed != nil:
		return "failed: " + cli.OneLine(f.failed.Error())
	case len(f.report.Refused) > 0:
		var codes []string
		for _, r := range f.report.Refused {
			c := r.Code
			if r.Function != "" {
				c += " (" + r.Function + ")"
			}
			codes = append(codes, c)
		}
		return "refused: " + strings.Join(codes, ", ")
	}
	return "built"
}

// functionNames lists functions as the index does: changed:NAME new:NAME.
func (f *fix) functionNames() string {
	var names []string
	for _, fn := range f.report.Functions {
		names = append(names, fn.Kind+":"+fn.Name)
	}
	return strings.Join(names, " ")
}
