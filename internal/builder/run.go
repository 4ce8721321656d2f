package builder

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Runner runs a program in a folder ("" is the current one) and returns what it
// printed on stdout. The error holds the end of what it printed on stderr.
type Runner func(ctx context.Context, dir, name string, args ...string) ([]byte, error)

// Exec is the Runner that runs programs, with the C locale so that their messages
// can be read.
func Exec(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "XZ_OPT=-T0", "KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_USER=livepatch", "KBUILD_BUILD_HOST=livepatch")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return stdout.Bytes(), ctx.Err()
		}
		return stdout.Bytes(), &ExecError{Program: name, Output: stderr.String() + stdout.String(), Err: err}
	}
	return stdout.Bytes(), nil
}

// ExecError is a failed program and what it said.
type ExecError struct {
	Program string
	Output  string
	Err     error
}

func (e *ExecError) Error() string {
	const keep = 2000
	out := strings.TrimSpace(e.Output)
	if len(out) > keep {
		out = "..." + out[len(out)-keep:]
	}
	return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, out)
}

func (e *ExecError) Unwrap() error { return e.Err }

// firstError is the first line that a compiler calls an error.
func firstError(output string) string {
	for line := range strings.Lines(output) {
		if strings.Contains(line, "error:") || strings.Contains(line, "Error:") || strings.Contains(line, "No rule") {
			return strings.TrimSpace(line)
		}
	}
	line, _, _ := strings.Cut(strings.TrimSpace(output), "\n")
	return line
}
