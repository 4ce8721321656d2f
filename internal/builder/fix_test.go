package builder

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestChangedFiles(t *testing.T) {
	t.Parallel()
	diff := "--- a/net/ipv4/icmp.c\t2026-01-01\n+++ b/net/ipv4/icmp.c\n@@ -1 +1 @@\n-a\n+b\n--- /dev/null\n+++ b/include/net/new.h\n"
	got, err := changedFiles([][]byte{[]byte(diff)})
	if err != nil || !slices.Equal(got, []string{"include/net/new.h", "net/ipv4/icmp.c"}) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{"", "hello", "--- a/../../etc/passwd\n+++ b/../../etc/passwd\n", "--- a//etc/passwd\n", "--- icmp.c\n"} {
		if got, err := changedFiles([][]byte{[]byte(bad)}); err == nil {
			t.Errorf("%q names files %q, want an error", bad, got)
		}
	}
}

// numbered is what the compiler takes each line's number for.
func numbered(text string) map[string]int {
	m := map[string]int{}
	n := 1
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "#line "); ok {
			n = 0
			for _, c := range rest {
				n = n*10 + int(c-'0')
			}
			continue
		}
		m[line] = n
		n++
	}
	return m
}

func TestWithLinesKeepsNumbers(t *testing.T) {
	t.Parallel()
	old := "one\ntwo\nthree(\n\targ);\nfour\nfive\n"
	new := "zero\nnought\none\ntwo\nthree(\n\tother,\n\targ);\nfour\nsix\n"
	hunks := []hunk{{0, 0, 1, 2}, {3, 0, 6, 1}, {6, 1, 9, 1}}
	was, is := numbered(old), numbered(withLines(new, hunks))
	for _, line := range []string{"one", "two", "three(", "four"} {
		if was[line] != is[line] {
			t.Errorf("%q was line %d and is line %d", line, was[line], is[line])
		}
	}
	if text := withLines(new, hunks); strings.Contains(text, "other,\n#line") {
		t.Errorf("a directive inside parentheses:\n%s", text)
	}
}

func TestWithLinesStaysOutOfMacrosAndComments(t *testing.T) {
	t.Parallel()
	new := "new\n#define A \\\n\tb\n/* c\n d */\ne\n"
	for _, tt := range []struct {
		hunk hunk
		want string
	}{
		{hunk{1, 0, 2, 1}, "\tb\n#line"},
		{hunk{3, 0, 4, 1}, " d */\n#line"},
	} {
		if got := withLines(new, []hunk{tt.hunk}); !strings.Contains(got, tt.want) {
			t.Errorf("hunk %+v: %q lacks %q", tt.hunk, got, tt.want)
		}
	}
}

func TestParseHunks(t *testing.T) {
	t.Parallel()
	got := parseHunks([]byte("--- a\n+++ b\n@@ -3,0 +4,2 @@ int f(void)\n+a\n+b\n@@ -9 +12 @@\n"))
	want := []hunk{{3, 0, 4, 2}, {9, 1, 12, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestShadowTree(t *testing.T) {
	t.Parallel()
	tree, shadow := t.TempDir(), filepath.Join(t.TempDir(), "shadow")
	for name, text := range map[string]string{"net/ipv4/icmp.c": "icmp", "net/ipv4/ping.c": "ping", "fs/file.c": "file"} {
		write(t, filepath.Join(tree, name), text)
	}
	if err := shadowTree(tree, shadow, []string{"net/ipv4/icmp.c", "net/new/new.c"}); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(shadow, "net/ipv4/icmp.c"), "changed")
	for name, want := range map[string]string{"net/ipv4/icmp.c": "icmp", "net/ipv4/ping.c": "ping"} {
		if got := read(t, filepath.Join(tree, name)); got != want {
			t.Errorf("the tree's %s is %q", name, got)
		}
	}
	for name, want := range map[string]string{"net/ipv4/icmp.c": "changed", "net/ipv4/ping.c": "ping", "fs/file.c": "file"} {
		if got := read(t, filepath.Join(shadow, name)); got != want {
			t.Errorf("the shadow's %s is %q", name, got)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
