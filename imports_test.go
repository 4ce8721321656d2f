package livepatch_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport is the map of the house: package => what of ours it may import. The
// root, which everybody may import, is written ".". Floors: nouns, mechanisms,
// services, commands; imports only go down, and services never import each other.
var mayImport = map[string]string{
	".":                          "",
	"internal/advisory":          ".",
	"internal/agent":             ". internal/api internal/elfobj internal/kernel internal/localapi internal/stream",
	"internal/api":               ". internal/rollout",
	"internal/blob":              ".",
	"internal/blob/blobtest":     ". internal/blob",
	"internal/builder":           ". internal/elfdiff internal/elfobj internal/kimage internal/klp",
	"internal/cli":               ".",
	"internal/elfdiff":           ". internal/elfobj",
	"internal/elfobj":            ".",
	"internal/kernel":            ". internal/elfobj",
	"internal/kernel/kerneltest": ". internal/elfobj internal/kernel",
	"internal/kimage":            ". internal/elfobj",
	"internal/klp":               ". internal/elfdiff internal/elfobj",
	"internal/localapi":          ".",
	"internal/matrix":            ". internal/builder internal/vm",
	"internal/portal":            ".",
	"internal/rollout":           ".",
	"internal/rollout/sim":       ". internal/rollout",
	"internal/server":            ". internal/advisory internal/api internal/blob internal/portal internal/rollout internal/store internal/stream",
	"internal/store":             ". internal/api internal/rollout",
	"internal/stream":            ". internal/blob",
	"internal/stream/streamtest": ". internal/blob internal/stream",
	"internal/vm":                ". internal/vm/guest",
	"internal/vm/guest":          ".",
	"cmd/livepatch":              ". internal/cli internal/localapi",
	"cmd/livepatchd":             ". internal/agent internal/api internal/elfobj internal/kernel internal/localapi internal/stream",
	"cmd/livepatch-server":       ". internal/api internal/blob internal/cli internal/server internal/store internal/stream",
	"cmd/livepatch-admin":        ". internal/api internal/builder internal/cli internal/elfobj internal/kimage internal/klp internal/rollout internal/rollout/sim internal/stream",
}

// onlyIn gives third-party modules their one home, so that a change of theirs
// changes one package of ours.
var onlyIn = map[string]struct{ home, why string }{
	"github.com/theupdateframework/go-tuf": {"internal/stream", "the stream is its one user"},
	"golang.org/x/sys/unix":                {"internal/kernel", "system calls stay behind one door"},
	"debug/elf":                            {"internal/elfobj", "debug/elf can panic on hostile bytes; elfobj guards it"},
	"modernc.org/sqlite":                   {"internal/store", "SQL stays in store"},
	"database/sql":                         {"internal/store", "SQL stays in store"},
	"github.com/pressly/goose":             {"internal/store", "SQL stays in store"},
	"github.com/smallstep/pkcs7":           {"internal/klp", "module signatures are part of writing modules"},
}

// TestImports holds every package against the map. It parses the files itself: a
// test that asks `go list` is answered from the test cache after an import was
// added, because the cache sees only files that the test itself opens.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	eachPackageFile(t, func(file string, f *ast.File) {
		pkg := path.Dir(file)
		seen[pkg] = true
		allowed, ok := mayImport[pkg]
		if !ok {
			t.Errorf("%s is not on the map: add it to mayImport and to ARCHITECTURE.md", pkg)
			return
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if dep, ok := ours(imp); ok && dep != "." && !slices.Contains(strings.Fields(allowed), dep) {
				t.Errorf("%s must not import %s", file, dep)
			}
			for mod, at := range onlyIn {
				if (imp == mod || strings.HasPrefix(imp, mod+"/")) && pkg != at.home {
					t.Errorf("%s imports %s, which only %s may: %s", file, imp, at.home, at.why)
				}
			}
		}
	})
	for pkg := range seen {
		if pkg == "." {
			continue
		}
		if data, err := os.ReadFile("ARCHITECTURE.md"); err != nil || !strings.Contains(string(data), "`"+pkg+"`") {
			t.Errorf("ARCHITECTURE.md does not name `%s`", pkg)
		}
	}
}

// TestPackageComments wants exactly one package comment for each package.
func TestPackageComments(t *testing.T) {
	comments := map[string][]string{}
	eachPackageFile(t, func(file string, f *ast.File) {
		pkg := path.Dir(file)
		if _, ok := comments[pkg]; !ok {
			comments[pkg] = nil
		}
		if f.Doc != nil {
			comments[pkg] = append(comments[pkg], file)
		}
	})
	for pkg, files := range comments {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments, want one: %v", pkg, len(files), files)
		}
	}
}

// TestNoInit keeps initialisation in sight: nothing happens before run is called.
func TestNoInit(t *testing.T) {
	eachPackageFile(t, func(file string, f *ast.File) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function", file)
			}
		}
	})
}

// TestGoMod forbids replace directives: what we test is what others get.
func TestGoMod(t *testing.T) {
	data, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "replace") {
			t.Errorf("go.mod: %s", strings.TrimSpace(line))
		}
	}
}

// ours turns an import path into the map's name of the package.
func ours(imp string) (string, bool) {
	if imp == "livepatch" {
		return ".", true
	}
	return strings.CutPrefix(imp, "livepatch/")
}

// eachPackageFile calls f for each Go file that is part of a program of ours; tests
// and what only tests use live by looser rules.
func eachPackageFile(t *testing.T, f func(file string, parsed *ast.File)) {
	t.Helper()
	root := os.DirFS(".")
	err := fs.WalkDir(root, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			skip := d.Name() == "testdata" || file == "test" || file == "tools" || file == "packaging" ||
				strings.HasPrefix(d.Name(), ".") && file != "."
			if skip {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		src, err := fs.ReadFile(root, file)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ParseComments)
		if err != nil {
			return err
		}
		f(file, parsed)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
