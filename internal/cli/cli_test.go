package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"
	"pgregory.net/rapid"

	"livepatch"
	"livepatch/internal/cli"
)

// streams are pipes whose ends the test reads.
func streams() (s *cli.Streams, out, err *bytes.Buffer) {
	out, err = new(bytes.Buffer), new(bytes.Buffer)
	return cli.NewStreams(strings.NewReader(""), out, err, func(string) string { return "" }), out, err
}

func TestAge(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0:                 "just now",
		52 * time.Second:  "52 seconds ago",
		time.Minute:       "1 minute ago",
		119 * time.Minute: "1 hour ago",
		49 * time.Hour:    "2 days ago",
		-5 * time.Minute:  "in 5 minutes",
		-time.Millisecond: "just now",
	} {
		if got := cli.Age(now.Add(-d), now); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if got := cli.Age(time.Time{}, now); got != "never" {
		t.Errorf("zero time: %q", got)
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1500000: "1.4 MiB", 64 << 20: "64 MiB", 1010 << 10: "1.0 MiB", 5 << 40: "5.0 TiB",
	} {
		if got := cli.Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// TestTableInPipe: whatever cells hold, a row is one line whose columns stand under
// their names, without colour or trailing blanks.
func TestTableInPipe(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		cell := rapid.StringMatching(`[a-z0-9 \n\t]{0,12}`)
		tab := cli.NewTable("first", "second")
		rows := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) [2]string {
			return [2]string{cell.Draw(t, "a"), cell.Draw(t, "b")}
		}), 0, 5).Draw(t, "rows")
		for _, r := range rows {
			tab.Row(r[0], r[1])
		}
		s, out, _ := streams()
		if err := tab.Write(s); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(rows)+1 {
			t.Fatalf("%d rows make %d lines:\n%s", len(rows), len(lines), out)
		}
		at := strings.Index(lines[0], "SECOND")
		for i, r := range rows {
			line := lines[i+1]
			second := cli.OneLine(r[1])
			if second == "" {
				second = "-"
			}
			if strings.TrimRight(line, " ") != line || strings.Contains(line, "\x1b") || line[at:] != second {
				t.Fatalf("row %q is %q under\n%s", r, line, lines[0])
			}
		}
	})
}

func TestTableOnTerminal(t *testing.T) {
	t.Parallel()
	s, out, _ := streams()
	s.OutTerminal, s.Width = true, 30
	tab := cli.NewTable("machine", "problem")
	tab.Row("web1", "a sentence that is longer than the terminal is wide")
	if err := tab.Write(s); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 30 {
			t.Errorf("%d columns on a terminal of 30: %q", n, line)
		}
	}
	if !strings.Contains(out.String(), "web1") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("drawn as\n%s", out)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	s, out, _ := streams()
	if err := s.JSON(map[string]string{"a": "<&>"}); err != nil {
		t.Fatal(err)
	}
	if want := "{\n  \"a\": \"<&>\"\n}\n"; out.String() != want {
		t.Errorf("%q, want %q", out, want)
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, cli.ExitOK},
		{errors.New("x"), cli.ExitFailure},
		{cli.Silent(7), 7},
		{livepatch.Errorf(livepatch.CodeInvalid, "x"), cli.ExitUsage},
		{fmt.Errorf("cannot: %w", livepatch.Errorf(livepatch.CodeNotPrivileged, "x")), cli.ExitPrivilege},
		{livepatch.Errorf(livepatch.CodeUnavailable, "x"), cli.ExitUnavailable},
		{livepatch.Errorf(livepatch.CodeWrongKernel, "x"), cli.ExitUnsupported},
		{livepatch.Errorf(livepatch.CodeTampered, "x"), cli.ExitTrust},
		{livepatch.Errorf(livepatch.CodeUnknownToken, "x"), cli.ExitRefused},
		{livepatch.Errorf(livepatch.CodeConflict, "x"), cli.ExitConflict},
		{livepatch.Errorf(livepatch.CodeNotEnabled, "x"), cli.ExitFailure},
		{livepatch.Errorf(livepatch.CodeUnavailable, "x: %w", context.Canceled), cli.ExitInterrupted},
	} {
		if got := cli.ExitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// tree is a program with a group and a verb.
func tree(verb func(*cobra.Command, []string) error) *cobra.Command {
	root := &cobra.Command{Use: "prog", Short: "a program"}
	group := &cobra.Command{Use: "token", Short: "tokens"}
	group.AddCommand(&cobra.Command{Use: "revoke ID", Args: cobra.ExactArgs(1), RunE: verb})
	root.AddCommand(group)
	return root
}

func TestRun(t *testing.T) {
	t.Parallel()
	fails := func(*cobra.Command, []string) error {
		return livepatch.Errorf(livepatch.CodeConflict, "cannot revoke token: it is revoked already")
	}
	for _, c := range []struct {
		args     string
		code     int
		out, err string
	}{
		{"token revoke 7", cli.ExitConflict, "", "prog: cannot revoke token: it is revoked already\n"},
		{"token revoke", cli.ExitUsage, "", "prog: accepts 1 arg(s), received 0\nRun 'prog token revoke --help' for help.\n"},
		{"token revoke --now 7", cli.ExitUsage, "", "prog: unknown flag: --now\nRun 'prog token revoke --help' for help.\n"},
		{"token rewoke", cli.ExitUsage, "", "prog: unknown command \"rewoke\"; did you mean revoke?\nRun 'prog token --help' for help.\n"},
		{"token", cli.ExitOK, "tokens", ""},
		{"", cli.ExitOK, "a program", ""},
	} {
		s, out, errs := streams()
		code := cli.Run(t.Context(), tree(fails), strings.Fields(c.args), s)
		if code != c.code || errs.String() != c.err || !strings.Contains(out.String(), c.out) || (c.out == "" && out.Len() > 0) {
			t.Errorf("prog %s: exit %d\nstdout %q\nstderr %q", c.args, code, out, errs)
		}
	}
}

// progressText is what is written while step lasts d.
func progressText(t *testing.T, terminal, quiet bool, d time.Duration) string {
	t.Helper()
	var text string
	synctest.Test(t, func(*testing.T) {
		s, _, errs := streams()
		s.ErrTerminal, s.Quiet = terminal, quiet
		p := s.Progress("downloading")
		time.Sleep(d)
		p.Part(512<<10, 1<<20)
		time.Sleep(d)
		p.Step("waiting for %d tasks", 3)
		time.Sleep(d)
		p.Stop()
		p.Stop()
		text = errs.String()
	})
	return text
}

func TestProgress(t *testing.T) {
	t.Parallel()
	if got := progressText(t, true, false, time.Second/2); got != "" {
		t.Errorf("one and a half seconds are told on a terminal: %q", got)
	}
	if got := progressText(t, false, false, time.Second/2); got != "" {
		t.Errorf("one and a half seconds are told in a pipe: %q", got)
	}
	if got := progressText(t, true, true, time.Minute); got != "" {
		t.Errorf("quiet says %q", got)
	}
	if got, want := progressText(t, false, false, 3*time.Second), "downloading ...\nwaiting for 3 tasks ...\n"; got != want {
		t.Errorf("in a pipe %q, want %q", got, want)
	}
	got := progressText(t, true, false, 3*time.Second)
	for _, want := range []string{"downloading (2 s)", "[############............] 512 KiB of 1.0 MiB", "waiting for 3 tasks (8 s)"} {
		if !strings.Contains(got, want) {
			t.Errorf("on a terminal %q lacks %q", got, want)
		}
	}
	if !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("the line is not cleared at the end: %q", got)
	}
}
