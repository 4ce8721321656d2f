package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"livepatch/internal/elfdiff"
)

// fix is the changes to build, as files of a shadow of the source tree.
type fix struct {
	// shadow is a tree of links to the source tree in which only the changed files
	// are real.
	shadow string
	// files are the changed files, relative to the tree, sorted.
	files []string
	// lines says, for each file, where its first change is.
	lines map[string]int
	// cves are the names of vulnerabilities that the diffs mention.
	cves []string
}

var (
	diffFileRE = regexp.MustCompile(`(?m)^(?:---|\+\+\+) ([^\t\n]+)`)
	cveRE      = regexp.MustCompile(`CVE-[0-9]{4}-[0-9]{4,}`)
)

// changedFiles lists the files that unified diffs with -p1 paths change.
func changedFiles(diffs [][]byte) ([]string, error) {
	var files []string
	for _, d := range diffs {
		for _, m := range diffFileRE.FindAllSubmatch(d, -1) {
			name := string(m[1])
			if name == "/dev/null" {
				continue
			}
			_, name, ok := strings.Cut(name, "/")
			if !ok || !filepath.IsLocal(name) || filepath.Clean(name) != name {
				return nil, fmt.Errorf("the diff names the file %q: paths must be of the form a/net/ipv4/icmp.c", m[1])
			}
			files = append(files, name)
		}
	}
	slices.Sort(files)
	files = slices.Compact(files)
	if len(files) == 0 {
		return nil, errors.New("there is no unified diff in it")
	}
	return files, nil
}

// applyFix makes a shadow of the tree in work, with the diffs applied.
func applyFix(ctx context.Context, run Runner, tree, work string, diffs [][]byte) (*fix, error) {
	files, err := changedFiles(diffs)
	if err != nil {
		return nil, refuse(elfdiff.ReasonApply, "", "", err.Error(), "Give the fix as a unified diff that applies with patch -p1.")
	}
	f := &fix{shadow: filepath.Join(work, "patched"), files: files, lines: map[string]int{}}
	if err := shadowTree(tree, f.shadow, files); err != nil {
		return nil, fmt.Errorf("make a working copy: %w", err)
	}
	for i, d := range diffs {
		path := filepath.Join(work, fmt.Sprintf("fix%d.patch", i))
		if err := os.WriteFile(path, d, 0o644); err != nil {
			return nil, err
		}
		if _, err := run(ctx, f.shadow, "patch", "-p1", "--batch", "--forward", "--no-backup-if-mismatch", "--reject-file=-", "--input", path); err != nil {
			var ee *ExecError
			if !errors.As(err, &ee) || ctx.Err() != nil {
				return nil, err
			}
			return nil, refuse(elfdiff.ReasonApply, strings.Join(files, " "), "", "the fix does not apply to the sources of this kernel: "+rejected(ee.Output),
				"Take the fix as the distribution backported it to this kernel.")
		}
		f.cves = append(f.cves, cveRE.FindAllString(string(d), -1)...)
	}
	slices.Sort(f.cves)
	f.cves = slices.Compact(f.cves)
	for _, name := range files {
		if err := f.keepLines(ctx, run, tree, name); err != nil {
			return nil, fmt.Errorf("keep line numbers of %s: %w", name, err)
		}
	}
	return f, nil
}

// rejected is what patch says of the first hunk that fails.
func rejected(output string) string {
	for line := range strings.Lines(output) {
		if strings.Contains(line, "FAILED") || strings.Contains(line, "can't find file") || strings.Contains(line, "previously applied") {
			return strings.TrimSpace(line)
		}
	}
	return firstError(output)
}

// shadowTree makes dir look like tree, by links, with real folders on the way to the
// files and real copies of the files.
func shadowTree(tree, dir string, files []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	below := map[string][]string{}
	real := map[string]bool{}
	for _, f := range files {
		first, rest, deeper := strings.Cut(f, "/")
		if deeper {
			below[first] = append(below[first], rest)
		} else {
			real[first] = true
		}
	}
	entries, err := os.ReadDir(tree)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join(tree, e.Name()), filepath.Join(dir, e.Name())
		switch {
		case below[e.Name()] != nil:
		case real[e.Name()]:
			b, err := os.ReadFile(from)
			if err != nil {
				return err
			}
			if err := os.WriteFile(to, b, 0o644); err != nil {
				return err
			}
		default:
			if err := os.Symlink(from, to); err != nil {
				return err
			}
		}
	}
	for name, rest := range below {
		if err := shadowTree(filepath.Join(tree, name), filepath.Join(dir, name), rest); err != nil {
			return err
		}
	}
	return nil
}

// hunk is one change of a file: lines of the old file became lines of the new one.
// With a count of 0 the number is that of the line before.
type hunk struct{ old, olds, new, news int }

var hunkRE = regexp.MustCompile(`(?m)^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@`)

// keepLines makes the compiler count the unchanged lines of a changed C file as in
// the original, so that __LINE__ in what only moved stays the same.
func (f *fix) keepLines(ctx context.Context, run Runner, tree, name string) error {
	old, path := filepath.Join(tree, name), filepath.Join(f.shadow, name)
	if _, err := os.Stat(old); err != nil || !strings.HasSuffix(name, ".c") && !strings.HasSuffix(name, ".h") {
		return nil // new files have no lines to keep
	}
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil // the fix removes it
	}
	if err != nil {
		return err
	}
	out, err := run(ctx, "", "diff", "-U0", old, path)
	var ee *ExecError
	if err != nil && (!errors.As(err, &ee) || len(out) == 0) {
		return err
	}
	hunks := parseHunks(out)
	if len(hunks) > 0 {
		f.lines[name] = max(hunks[0].old, 1)
	}
	return os.WriteFile(path, []byte(withLines(string(text), hunks)), 0o644)
}

func parseHunks(diff []byte) []hunk {
	var hunks []hunk
	for _, m := range hunkRE.FindAllSubmatch(diff, -1) {
		n := func(i int) int {
			if len(m[i]) == 0 {
				return 1
			}
			v, _ := strconv.Atoi(string(m[i]))
			return v
		}
		hunks = append(hunks, hunk{n(1), n(2), n(3), n(4)})
	}
	return hunks
}

// withLines puts a #line directive behind each change, at the next line that is
// neither inside parentheses (where it could be in a macro's arguments), nor in a
// comment, nor continues the line before.
func withLines(text string, hunks []hunk) string {
	lines := strings.SplitAfter(text, "\n")
	var b strings.Builder
	var st lexState
	shift, pending := 0, false
	next := 0
	for i, line := range lines {
		n := i + 1
		for next < len(hunks) && n >= hunkEnd(hunks[next]) {
			h := hunks[next]
			shift, pending = hunkEnd(h)-oldEnd(h), true
			next++
		}
		inside := next < len(hunks) && n >= hunks[next].new && hunks[next].news > 0
		if pending && !inside && st.calm() && line != "" {
			fmt.Fprintf(&b, "#line %d\n", n-shift)
			pending = false
		}
		st.scan(line)
		b.WriteString(line)
	}
	return b.String()
}

// hunkEnd is the first line of the new file behind the hunk, oldEnd that of the old.
func hunkEnd(h hunk) int {
	if h.news == 0 {
		return h.new + 1
	}
	return h.new + h.news
}

func oldEnd(h hunk) int {
	if h.olds == 0 {
		return h.old + 1
	}
	return h.old + h.olds
}

// lexState follows C just far enough to know where a directive may stand.
type lexState struct {
	depth     int
	comment   bool
	continued bool
}

func (s *lexState) calm() bool { return s.depth <= 0 && !s.comment && !s.continued }

func (s *lexState) scan(line string) {
	s.continued = strings.HasSuffix(strings.TrimRight(line, "\r\n"), "\\")
	if !s.comment && (line[:min(1, len(line))] == "}" || line[:min(1, len(line))] == "{") {
		s.depth = 0 // whatever conditional compilation did to the count, here it is 0
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case s.comment:
			if c == '*' && strings.HasPrefix(line[i:], "*/") {
				s.comment = false
				i++
			}
		case strings.HasPrefix(line[i:], "/*"):
			s.comment = true
			i++
		case strings.HasPrefix(line[i:], "//"):
			return
		case c == '"' || c == '\'':
			for i++; i < len(line) && line[i] != c; i++ {
				if line[i] == '\\' {
					i++
				}
			}
		case c == '(':
			s.depth++
		case c == ')':
			s.depth--
		}
	}
}
