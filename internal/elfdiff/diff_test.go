package elfdiff_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func graph(t testing.TB, name string) *elfdiff.Graph {
	t.Helper()
	f, err := elfobj.Parse(fixture(t, name))
	if err != nil {
		t.Fatal(err)
	}
	g, err := elfdiff.NewGraph(f)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func names(items []*elfdiff.Item) string {
	var l []string
	for _, it := range items {
		name, _, _ := strings.Cut(it.Name, ".")
		l = append(l, name)
	}
	slices.Sort(l)
	return strings.Join(l, " ")
}

func changed(r *elfdiff.Result) string {
	var l []*elfdiff.Item
	for _, p := range r.Changed {
		l = append(l, p.New)
	}
	return names(l)
}

func TestDiffFindsChangedAndNew(t *testing.T) {
	t.Parallel()
	r := elfdiff.Diff(graph(t, "basic.old.o"), graph(t, "basic.new.o"))
	if len(r.Problems) > 0 {
		t.Errorf("problems %+v, want none", r.Problems)
	}
	if got := changed(r); got != "changed pointer" {
		t.Errorf("changed functions are %q, want changed and pointer", got)
	}
	if got := names(r.New); got != "check" {
		t.Errorf("new functions are %q, want check", got)
	}
	// The new function's own state comes along; everything else stays in place.
	if got := names(r.Include); got != "calls changed check pointer refused" {
		t.Errorf("carried are %q, want the functions and the new function's state", got)
	}
}

// Static locals are numbered anew when a fix adds some: each must still be paired
// with the one of its own function.
func TestDiffPairsRenumberedLocals(t *testing.T) {
	t.Parallel()
	old, fixed := graph(t, "basic.old.o"), graph(t, "basic.new.o")
	r := elfdiff.Diff(old, fixed)
	for _, it := range fixed.Items {
		base, _, _ := strings.Cut(it.Name, ".")
		if it.Kind != elfdiff.Data || base != "seen" && base != "calls" {
			continue
		}
		users := func(g *elfdiff.Graph, v *elfdiff.Item) string {
			var l []*elfdiff.Item
			for _, f := range g.Items {
				if slices.ContainsFunc(f.Refs, func(r elfdiff.Ref) bool { return r.Target == v }) {
					l = append(l, f)
				}
			}
			return names(l)
		}
		if was := r.Original(it); was == nil {
			if u := users(fixed, it); u != "check" {
				t.Errorf("%s of %s has lost its original", it.Name, u)
			}
		} else if a, b := users(old, was), users(fixed, it); a != b {
			t.Errorf("%s of %s is paired with that of %s", it.Name, b, a)
		}
	}
}

func TestDiffOfEqualObjectsIsNoChange(t *testing.T) {
	t.Parallel()
	r := elfdiff.Diff(graph(t, "basic.old.o"), graph(t, "basic.old.o"))
	if len(r.Changed) > 0 || len(r.Problems) != 1 || r.Problems[0].Code != elfdiff.ReasonNoChange {
		t.Errorf("got %q, %+v; want nothing changed and the reason no-change", changed(r), r.Problems)
	}
}

func TestDiffRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ object, code, about string }{
		{"refused.DATA.o", elfdiff.ReasonData, "ops"},
		{"refused.INIT.o", elfdiff.ReasonInit, "setup"},
		{"refused.NOHOOK.o", elfdiff.ReasonNoHook, "quiet"},
		{"refused.LISTED.o", elfdiff.ReasonSection, ".initcall6.init"},
	}
	for _, tt := range tests {
		r := elfdiff.Diff(graph(t, "refused.old.o"), graph(t, tt.object))
		if len(r.Problems) != 1 || r.Problems[0].Code != tt.code || r.Problems[0].Function != tt.about || r.Problems[0].Advice == "" {
			t.Errorf("%s: problems %+v, want one %s about %s with advice", tt.object, r.Problems, tt.code, tt.about)
		}
	}
}

// A constant that only code uses can change: its users take the new version along.
func TestDiffCarriesChangedConstant(t *testing.T) {
	t.Parallel()
	r := elfdiff.Diff(graph(t, "refused.old.o"), graph(t, "refused.CONSTANT.o"))
	if len(r.Problems) > 0 || changed(r) != "limit" || names(r.Include) != "limit limits" {
		t.Errorf("changed %q, carried %q, problems %+v; want limit with its constant", changed(r), names(r.Include), r.Problems)
	}
}

func TestCheckLayouts(t *testing.T) {
	t.Parallel()
	layouts := func(name string) map[string]elfobj.Layout {
		l, err := elfobj.Layouts(fixture(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	old := layouts("refused.old.o")
	if p := elfdiff.CheckLayouts(old, layouts("refused.DATA.o")); len(p) > 0 {
		t.Errorf("same structures: problems %+v", p)
	}
	p := elfdiff.CheckLayouts(old, layouts("refused.LAYOUT.o"))
	if len(p) != 1 || p[0].Code != elfdiff.ReasonLayout || p[0].Function != "layout" || !strings.Contains(p[0].Reason, "from 8 to 12 bytes") {
		t.Errorf("problems %+v, want struct-layout of struct layout", p)
	}
}

// Whatever the bytes are: an error or a result that only carries what the patched
// object has, never a panic.
func FuzzDiff(f *testing.F) {
	for _, pair := range [][2]string{{"basic.old.o", "basic.new.o"}, {"refused.old.o", "refused.INIT.o"}} {
		f.Add(fixture(f, pair[0]), fixture(f, pair[1]))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		old, new := parse(a), parse(b)
		if old == nil || new == nil {
			return
		}
		r := elfdiff.Diff(old, new)
		for _, p := range r.Changed {
			if r.Original(p.New) != p.Old || !r.Included(p.New) {
				t.Errorf("%s is changed, but its original is not the one listed or it is not carried", p.New.Name)
			}
		}
		for _, it := range r.Include {
			if uint64(len(it.Data)) > it.Size || it.Data != nil && !bytes.Contains(b, it.Data) {
				t.Errorf("%s is carried with bytes that the object does not have", it.Name)
			}
		}
	})
}

func parse(b []byte) *elfdiff.Graph {
	f, err := elfobj.Parse(b)
	if err != nil {
		return nil
	}
	g, err := elfdiff.NewGraph(f)
	if err != nil {
		return nil
	}
	return g
}

// Only what keeps an address counts as taking it: calls of local functions look much
// the same to the linker.
func TestAddressTakenIsNotACall(t *testing.T) {
	t.Parallel()
	r := elfdiff.Diff(graph(t, "basic.old.o"), graph(t, "basic.new.o"))
	if taken := r.AddressTaken(); len(taken) > 0 {
		t.Errorf("the address of %s counts as taken, but it is only called", names(taken))
	}
	for _, p := range r.Changed {
		for _, ref := range p.New.Refs {
			if want := p.New.Name != "pointer" || ref.Target.Name != "changed"; ref.Target.Kind == elfdiff.Function && p.New.Calls(ref) != want {
				t.Errorf("%s calls %s: %v, want %v", p.New.Name, ref.Target.Name, !want, want)
			}
		}
	}
}
