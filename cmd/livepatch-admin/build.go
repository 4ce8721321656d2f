package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/builder"
	"livepatch/internal/cli"
)

// exitRefused is the exit code of a fix that cannot be livepatched.
const exitRefused = 3

// buildFlags are the flags of build.
type buildFlags struct {
	kernel, kernels, source, out, name string
	fixes                              []string
	offline                            bool
	jobs                               int
}

func (p *program) build() *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:   "build FIX.patch... --kernel RELEASE --out MODULE.ko",
		Short: "Build a livepatch module from a fix",
		Long: `Build one livepatch module that holds all the fixes given, for a distribution's kernel, without building
the kernel: only the files that the fixes touch are compiled, before and after, and compared. The rebuilt
originals are proven to be the code that the distribution ships before anything is written.

The fixes are unified diffs that apply to the distribution's sources with patch -p1. Sources, headers and image
come from the package manager and are kept in $LIVEPATCH_CACHE, else in ~/.cache/livepatch. Needs no server.

Exit code: 0 built, 3 the fix cannot be livepatched as it is, 1 anything else.`,
		Example: examples(`
livepatch-admin build --kernel 6.1.0-47-cloud-amd64 fix1.patch fix2.patch -o lp.ko
livepatch-admin build --kernels kernels.txt fix.patch -o out/`),
		Args: cobra.MinimumNArgs(1),
	}
	c.RunE = func(cmd *cobra.Command, args []string) error {
		releases, err := f.releases(cmd)
		if err != nil {
			return err
		}
		return p.runBuild(cmd.Context(), &f, releases, args)
	}
	fl := c.Flags()
	fl.StringVar(&f.kernel, "kernel", "", "the kernel's `RELEASE`, as uname -r prints it")
	fl.StringVar(&f.kernels, "kernels", "", "`FILE` with one release a line: build for all of them")
	fl.StringVarP(&f.out, "out", "o", "", "the module's `FILE`; with --kernels the folder for RELEASE/NAME.ko")
	fl.StringVar(&f.source, "source", "", "source `TREE` to use instead of the distribution's; it is configured in place")
	fl.StringVar(&f.name, "name", "", "the module's `NAME` (default from --out or the fixes)")
	fl.StringArrayVar(&f.fixes, "fixes", nil, "`CVE` that the module fixes, for example CVE-2026-1234; may be repeated")
	fl.BoolVar(&f.offline, "offline", false, "use nothing but the cache")
	fl.IntVarP(&f.jobs, "jobs", "j", 2, "how many compilers run at a time")
	return c
}

// releases reads which kernels are asked for.
func (f *buildFlags) releases(cmd *cobra.Command) ([]string, error) {
	switch {
	case f.out == "":
		return nil, cli.Usagef(cmd, "name the module to write: --out lp.ko")
	case (f.kernel == "") == (f.kernels == ""):
		return nil, cli.Usagef(cmd, "name the kernel: --kernel 6.1.0-47-cloud-amd64, or --kernels with a file of several")
	case f.kernel != "":
		return []string{f.kernel}, nil
	}
	b, err := os.ReadFile(f.kernels)
	if err != nil {
		return nil, cannot("read the list of kernels", err)
	}
	var list []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	if len(list) == 0 {
		return nil, cannot("build", livepatch.Errorf(livepatch.CodeInvalid, "%s names no kernel: write one release a line", f.kernels))
	}
	return list, nil
}

func (p *program) runBuild(ctx context.Context, f *buildFlags, releases, paths []string) error {
	diffs, name, err := f.diffs(paths)
	if err != nil {
		return err
	}
	cache, err := cacheDir(p.getenv)
	if err != nil {
		return cannot("build", err)
	}
	progress := p.s.Progress("build")
	defer progress.Stop()
	var reports []*builder.Report
	var failed error
	for _, release := range releases {
		bd := &builder.Builder{Cache: cache, Offline: f.offline, Jobs: f.jobs, Now: p.now, Progress: func(phase string) {
			progress.Step("%s: %s", release, phase)
		}}
		out := f.out
		if f.kernels != "" {
			out = filepath.Join(f.out, release, name+".ko")
		}
		report, err := buildOne(ctx, bd, builder.Request{Release: release, Diffs: diffs, Source: f.source, Name: name, Fixes: f.fixes}, out)
		reports = append(reports, report)
		var refused *builder.RefusedError
		if err != nil && !errors.As(err, &refused) {
			progress.Stop()
			return cannot("build for "+release, err)
		}
		failed = errors.Join(failed, err)
	}
	progress.Stop()
	return p.reportBuild(f, reports, failed)
}

// buildOne builds one module and writes it.
func buildOne(ctx context.Context, bd *builder.Builder, req builder.Request, out string) (*builder.Report, error) {
	module, report, err := bd.Build(ctx, req)
	if err != nil {
		return report, err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return report, err
	}
	report.Module = out
	return report, writeWhole(out, module)
}

// reportBuild prints the reports; refusals end in exit code 3.
func (p *program) reportBuild(f *buildFlags, reports []*builder.Report, failed error) error {
	var all any = reports
	if f.kernels == "" {
		all = reports[0]
	}
	err := p.print(all, func() error {
		for _, r := range reports {
			if err := p.writeBuild(r); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && failed != nil {
		return cli.Silent(exitRefused)
	}
	return err
}

func (p *program) writeBuild(r *builder.Report) error {
	if len(r.Refused) > 0 {
		fmt.Fprintf(p.s.Err, "The fix cannot be livepatched as it is on %s:\n", r.Kernel)
		for _, why := range r.Refused {
			place := why.File
			if why.Line > 0 {
				place = fmt.Sprintf("%s:%d", place, why.Line)
			}
			fmt.Fprintf(p.s.Err, "  %s: %s (%s)\n    %s\n", place, why.Reason, why.Code, why.Advice)
		}
		return nil
	}
	t := cli.NewTable("object", "function", "what")
	for _, fn := range r.Functions {
		t.Row(fn.Object, fn.Name, fn.Kind)
	}
	if err := t.Write(p.s); err != nil {
		return err
	}
	for _, note := range r.Notes {
		fmt.Fprintf(p.s.Err, "Note: %s.\n", note)
	}
	s := r.Seconds
	return p.s.Printf("Built %s for %s: %s, %d symbols for the livepatch core, in %.1f s.", r.Module, r.Kernel, cli.Bytes(r.SizeBytes), r.Symbols,
		s.Prepare+s.Compile+s.Diff+s.Write)
}

// diffs reads the fixes and decides the module's name: --name, else the file's, else
// one made from the fixes.
func (f *buildFlags) diffs(paths []string) (diffs [][]byte, name string, err error) {
	const maxDiff = 16 << 20
	sum := sha256.New()
	for _, path := range paths {
		b, err := readBounded(path, maxDiff)
		if err != nil {
			return nil, "", cannot("read the fix", err)
		}
		diffs = append(diffs, b)
		sum.Write(b)
	}
	name = f.name
	if name == "" && f.kernels == "" {
		name = strings.ReplaceAll(strings.TrimSuffix(filepath.Base(f.out), ".ko"), "-", "_")
	}
	if name == "" {
		name = "livepatch_" + hex.EncodeToString(sum.Sum(nil)[:4])
	}
	return diffs, name, nil
}

// cacheDir is where packages and prepared sources are kept.
func cacheDir(getenv func(string) string) (string, error) {
	if dir := getenv("LIVEPATCH_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := getenv("XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "livepatch"), nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", livepatch.Errorf(livepatch.CodeInvalid, "there is no home folder to keep sources in: set LIVEPATCH_CACHE")
	}
	return filepath.Join(home, ".cache", "livepatch"), nil
}
