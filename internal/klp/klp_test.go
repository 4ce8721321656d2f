package klp_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
	"livepatch/internal/klp"
)

func object(t *testing.T, path string) *elfobj.File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elfobj.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// input is a livepatch of the differ's fixture, as the builder would put it together:
// printk is exported, everything else is for the livepatch core.
func input(t *testing.T) klp.Input {
	t.Helper()
	graph := func(name string) *elfdiff.Graph {
		g, err := elfdiff.NewGraph(object(t, "../elfdiff/testdata/"+name))
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	r := elfdiff.Diff(graph("basic.old.o"), graph("basic.new.o"))
	in := klp.Input{Tables: object(t, "testdata/tables.o"), Names: map[string]*elfdiff.Item{}}
	for _, p := range r.Changed {
		in.Names[map[string]string{"changed": "lp_new_0", "pointer": "lp_new_1"}[p.New.Name]] = p.New
	}
	in.Fragments = []klp.Fragment{{Object: "vmlinux", Result: r, Bind: func(it *elfdiff.Item) (klp.Binding, error) {
		switch it.Name {
		case "printk", "__fentry__":
			return klp.Binding{Exported: it.Name}, nil
		}
		return klp.Binding{Object: "vmlinux", Name: it.Name, Position: 1}, nil
	}}}
	in.Version = func(string) (uint32, bool) { return 0x12345678, true }
	return in
}

func write(t *testing.T, in klp.Input) (raw []byte, f *elfobj.File) {
	t.Helper()
	raw, err := klp.Write(in)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = elfobj.Parse(raw); err != nil {
		t.Fatal(err)
	}
	return raw, f
}

func TestWriteMakesALivepatch(t *testing.T) {
	t.Parallel()
	raw, _ := write(t, input(t))
	p, err := elfobj.ParsePatch(raw)
	if err != nil {
		t.Fatal(err)
	}
	if p.Module.Name != "lp" || !p.Module.Replace || len(p.Objects) != 1 || len(p.Objects[0].Functions) != 2 {
		t.Fatalf("read back %+v", p)
	}
	if fn := p.Objects[0].Functions[1]; fn.Name != "pointer" || fn.Position != 2 || fn.Size == 0 {
		t.Errorf("second function is %+v, want pointer at position 2 with the new code's size", fn)
	}
}

func TestWriteIsReproducible(t *testing.T) {
	t.Parallel()
	a, _ := write(t, input(t))
	b, _ := write(t, input(t))
	if !bytes.Equal(a, b) {
		t.Error("two modules of the same input differ")
	}
}

// The livepatch core finds its symbols by name and section index, its relocations by
// flag and section name, and insists that what it fills in is zero
// (Documentation/livepatch/module-elf-format.rst, arch/x86/kernel/module.c).
func TestWriteLeavesSymbolsToTheCore(t *testing.T) {
	t.Parallel()
	_, f := write(t, input(t))
	s := f.Section(".klp.rela.vmlinux..text")
	if s == nil {
		t.Fatal("no livepatch relocations of .text")
	}
	if s.Flags&elfobj.SHF_RELA_LIVEPATCH == 0 || s.Flags&elfobj.SHF_ALLOC == 0 || f.Sections[s.Info].Name != ".text" {
		t.Errorf("section has flags %#x and applies to %s", s.Flags, f.Sections[s.Info].Name)
	}
	var names []string
	for _, r := range s.Relocs {
		names = append(names, r.Symbol.Name)
		if r.Symbol.Shndx != elfobj.SHN_LIVEPATCH {
			t.Errorf("%s has section index %#x", r.Symbol.Name, r.Symbol.Shndx)
		}
		if text := f.Section(".text").Data; !bytes.Equal(text[r.Offset:r.Offset+4], make([]byte, 4)) {
			t.Errorf("the place of %s is not zero", r.Symbol.Name)
		}
	}
	if !slices.Contains(names, ".klp.sym.vmlinux.helper,1") || !slices.Contains(names, ".klp.sym.vmlinux.exported_state,1") {
		t.Errorf("livepatch symbols are %q", names)
	}
}

// The address of a replaced function outlives the livepatch when it is the original's.
func TestWriteTakesAddressOfOriginal(t *testing.T) {
	t.Parallel()
	_, f := write(t, input(t))
	for _, r := range f.Section(".klp.rela.vmlinux..text").Relocs {
		if r.Symbol.Name == ".klp.sym.vmlinux.changed,1" {
			return
		}
	}
	t.Error("pointer() returns the address of the livepatch's own copy")
}

func TestWriteVersions(t *testing.T) {
	t.Parallel()
	in := input(t)
	_, f := write(t, in)
	v := f.Section("__versions")
	if v == nil || len(v.Data)%64 != 0 {
		t.Fatal("no table of versions")
	}
	var got []string
	for row := 0; row < len(v.Data); row += 64 {
		got = append(got, v.CString(uint64(row+8)))
	}
	if strings.Join(got, " ") != "__fentry__ klp_enable_patch module_layout printk" {
		t.Errorf("versions of %q", got)
	}
	in.Version = func(string) (uint32, bool) { return 0, false }
	if _, err := klp.Write(in); err == nil {
		t.Error("a symbol without a checksum is accepted")
	}
}

func TestWritePassesOnWhatCannotBeFound(t *testing.T) {
	t.Parallel()
	in := input(t)
	gone := errors.New("gone")
	in.Fragments[0].Bind = func(*elfdiff.Item) (klp.Binding, error) { return klp.Binding{}, gone }
	if _, err := klp.Write(in); !errors.Is(err, gone) {
		t.Errorf("error %v, want the one of Bind", err)
	}
}
