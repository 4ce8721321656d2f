package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// phase is one command whose result counts.
type phase struct {
	// group is what -only selects: lint, unit or vm.
	group string
	name  string
	argv  []string
	// silent commands pass when they succeed and print nothing; the others speak
	// the language of go test -json.
	silent bool
	// each tells to show every test when it ends, not just every package.
	each bool
}

func phases() []phase {
	return []phase{
		{group: "lint", name: "gofmt", argv: []string{"gofmt", "-l", "."}, silent: true},
		{group: "lint", name: "go vet", argv: []string{"go", "vet", "-tags", "vm", "./..."}, silent: true},
		{group: "lint", name: "staticcheck", argv: []string{"go", "tool", "-modfile=tools/go.mod", "staticcheck", "-tags", "vm", "./..."}, silent: true},
		{group: "unit", name: "unit tests with the race detector", argv: []string{"go", "test", "-json", "-race", "-timeout", "10m", "./..."}},
		// One package at a time: each boots machines of its own.
		{group: "vm", name: "tests in virtual machines", argv: []string{"go", "test", "-json", "-tags", "vm", "-count", "1", "-p", "1", "-timeout", "25m", "./packaging", "./test/kernel", "./test/e2e", "./test/rollout"}, each: true},
	}
}

// run runs the phases and returns the exit code: 0 when something passed and
// nothing failed.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("report", flag.ContinueOnError)
	flags.SetOutput(stderr)
	only := flags.String("only", "", "run only the phases of these groups, comma-separated: lint, unit, vm")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	r := &report{out: stdout}
	for _, p := range phases() {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), p.group) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(stdout, "== %s\n", p.name)
		r.phase(ctx, p)
		fmt.Fprintf(stdout, "== %s took %.0f s\n", p.name, time.Since(start).Seconds())
	}
	return r.summary()
}

// report counts and prints.
type report struct {
	out                     io.Writer
	passed, failed, skipped int
	failures                []string
}

func (r *report) phase(ctx context.Context, p phase) {
	cmd := exec.CommandContext(ctx, p.argv[0], p.argv[1:]...)
	// A polite end first, so that tests can stop their machines.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if p.silent {
		out, err := cmd.CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) > 0 {
			r.fail(p.name, fmt.Sprintf("%s\n%v\n", out, err))
			return
		}
		r.passed++
		return
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.fail(p.name, err.Error()+"\n")
		return
	}
	before := r.failed
	r.read(pipe, p.each)
	if err := cmd.Wait(); err != nil && r.failed == before {
		r.fail(p.name, fmt.Sprintf("%s%v\n", stderr.String(), err))
	}
}

// event is a line of go test -json (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64
}

// read follows the events of one go test. What a test printed is shown if it fails.
func (r *report) read(in io.Reader, each bool) {
	output := map[string]*strings.Builder{}
	failedIn := map[string]bool{}
	builds := &strings.Builder{}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintf(builds, "%s\n", lines.Text())
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "build-output":
			builds.WriteString(e.Output)
		case "output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(e.Output)
		case "pass", "fail", "skip":
			r.result(e, each, failedIn, text(output[key])+failedBuild(e, builds))
			delete(output, key)
		}
	}
}

func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// failedBuild is the compiler's output for a package that failed without a test.
func failedBuild(e event, builds *strings.Builder) string {
	if e.Action != "fail" || e.Test != "" {
		return ""
	}
	defer builds.Reset()
	return builds.String()
}

func (r *report) result(e event, each bool, failedIn map[string]bool, output string) {
	name := strings.TrimPrefix(e.Package, "livepatch/")
	switch {
	case e.Test == "" && e.Action == "fail" && !failedIn[e.Package]:
		r.fail(name, output)
	case e.Test == "" && e.Action != "skip":
		fmt.Fprintf(r.out, "%-4s %s %.1f s\n", map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action], name, e.Elapsed)
	case e.Test == "":
	case e.Action == "pass":
		r.passed++
		if each {
			fmt.Fprintf(r.out, "  ok %s %.1f s\n", e.Test, e.Elapsed)
		}
	case e.Action == "skip":
		r.skipped++
		fmt.Fprintf(r.out, "skip %s %s\n%s", name, e.Test, output)
	default:
		failedIn[e.Package] = true
		r.fail(name+" "+e.Test, output)
	}
}

func (r *report) fail(name, output string) {
	r.failed++
	r.failures = append(r.failures, name)
	fmt.Fprintf(r.out, "FAIL %s\n%s", name, output)
}

// summary prints the names of what failed and the closing line.
func (r *report) summary() int {
	for _, name := range r.failures {
		fmt.Fprintf(r.out, "failed: %s\n", name)
	}
	if r.skipped > 0 {
		fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	} else {
		fmt.Fprintf(r.out, "%d passed, %d failed\n", r.passed, r.failed)
	}
	if r.failed > 0 || r.passed == 0 {
		return 1
	}
	return 0
}
