package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTableNamesWhatIsOverBudget(t *testing.T) {
	t.Parallel()
	rows := []row{
		{Name: "small", Unit: "MB", Measured: 20, Budget: atMost(20), Yardstick: "a stone", Beside: 8},
		{Name: "slow", Unit: "ms", Measured: 20.1, Budget: atMost(20)},
		{Name: "for information", Measured: 99},
	}
	lines := strings.Split(table(rows), "\n")[2:]
	for i, want := range []string{"ok", "MISSED", ""} {
		if got := strings.TrimSpace(strings.Split(lines[i], "|")[4]); got != want {
			t.Errorf("row %q is marked %q, want %q", rows[i].Name, got, want)
		}
	}
	if !strings.Contains(lines[0], "8 MB: a stone") || !strings.Contains(lines[0], "2.5") {
		t.Errorf("row %q lacks yardstick or ratio", lines[0])
	}
	if err := verdict(rows); err == nil || !strings.Contains(err.Error(), "slow") || strings.Contains(err.Error(), "small") {
		t.Errorf("verdict = %v, want one about slow alone", err)
	}
	if err := verdict(rows[:1]); err != nil {
		t.Errorf("verdict of a kept budget = %v", err)
	}
}

func TestReplaceTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	doc := "before\n" + markBegin + "old figures\n" + markEnd + "after\n"
	if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what it wrote, it can replace
		if err := replaceTable(path, []row{{Name: "new figure", Measured: 7}}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	if !strings.HasPrefix(got, "before\n") || !strings.HasSuffix(got, "after\n") || strings.Contains(got, "old") || strings.Count(got, "new figure") != 1 {
		t.Errorf("document is\n%s", got)
	}
	if err := os.WriteFile(path, []byte("no marks"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := replaceTable(path, nil); err == nil {
		t.Error("a document without marks is no error")
	}
}

func TestProxyCountsBothWays(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return // the test is over
		}
		defer c.Close()
		var ask [4]byte
		if _, err := io.ReadFull(c, ask[:]); err == nil {
			_, _ = c.Write([]byte("a longer answer"))
		}
	}()
	p, err := newProxy(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	c, err := net.Dial("tcp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("ask?")); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "a longer answer" {
		t.Fatalf("answer = %q, %v", answer, err)
	}
	if got, want := p.traffic(), (traffic{up: 4, down: 15}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
}
