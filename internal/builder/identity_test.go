package builder

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
)

// rebuilt returns an object as bytes, and its functions and variables.
func rebuilt(t *testing.T) (raw []byte, f *elfobj.File, items map[string]*elfdiff.Item) {
	t.Helper()
	raw, err := os.ReadFile("../elfdiff/testdata/basic.old.o")
	if err != nil {
		t.Fatal(err)
	}
	if f, err = elfobj.Parse(raw); err != nil {
		t.Fatal(err)
	}
	g, err := elfdiff.NewGraph(f)
	if err != nil {
		t.Fatal(err)
	}
	items = map[string]*elfdiff.Item{}
	for _, it := range g.Items {
		items[it.Name] = it
	}
	return raw, f, items
}

// asShipped makes a module of the bytes, with further symbols in front of its own.
func asShipped(t *testing.T, raw []byte, front ...shippedSymbol) *object {
	t.Helper()
	f, err := elfobj.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	o := &object{name: "module", file: f, symbols: front}
	for _, s := range f.Symbols {
		if s.Section != nil && s.Name != "" && s.Type != elfobj.STT_SECTION {
			o.symbols = append(o.symbols, shippedSymbol{name: s.Name, section: s.Section, address: s.Value, global: s.Bind != elfobj.STB_LOCAL})
		}
	}
	o.index()
	return o
}

func TestProveAcceptsTheShippedCode(t *testing.T) {
	t.Parallel()
	raw, f, items := rebuilt(t)
	l := newLocator(asShipped(t, raw), f)
	for _, name := range []string{"changed", "unchanged", "helper"} {
		if err := l.prove(items[name]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProveNamesTheFunctionThatDiffers(t *testing.T) {
	t.Parallel()
	raw, f, items := rebuilt(t)
	code := items["changed"].Data
	at := bytes.Index(raw, code)
	other := bytes.Clone(raw)
	other[at+5] ^= 1 // behind the call to __fentry__: no relocation touches it
	err := newLocator(asShipped(t, other), f).prove(items["changed"])
	if err == nil || !strings.Contains(err.Error(), "changed is not the code that module ships") {
		t.Errorf("error %v, want one that names the function", err)
	}
	if err := newLocator(asShipped(t, other), f).prove(items["unchanged"]); err != nil {
		t.Errorf("another function: %v", err)
	}
}

// Which of several equal names is meant follows from where the object was linked.
func TestPositionCountsEqualNames(t *testing.T) {
	t.Parallel()
	raw, f, items := rebuilt(t)
	shipped := asShipped(t, raw, shippedSymbol{name: "helper", section: &elfobj.Section{Name: ".text.elsewhere"}, address: 64})
	l := newLocator(shipped, f)
	i, err := l.locate(items["helper"])
	if err != nil {
		t.Fatal(err)
	}
	if got := shipped.position(i); got != 2 {
		t.Errorf("helper is at position %d, want 2", got)
	}
	if i, err = l.locate(items["changed"]); err != nil || shipped.position(i) != 0 {
		t.Errorf("a unique name is at position %d, %v; want 0", shipped.position(i), err)
	}
}
