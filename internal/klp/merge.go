package klp

import (
	"fmt"
	"math/bits"
	"strings"

	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
)

// Binding says where something is that the livepatch refers to but does not carry.
// Exactly one of its three forms is set.
type Binding struct {
	// Item is a piece carried by another fragment.
	Item *elfdiff.Item
	// Exported is the name of a symbol that the kernel exports: the module loader
	// resolves it.
	Exported string
	// Object, Name and Position name a symbol for the livepatch core: Object is
	// "vmlinux" or a module, Position is 0 when the name is unique there and else
	// counts from 1.
	Object   string
	Name     string
	Position uint64
}

// Fragment is what one compiled file contributes.
type Fragment struct {
	// Object is the patched object: "vmlinux" or a module's name.
	Object string
	Result *elfdiff.Result
	// Bind finds what the fragment does not carry.
	Bind func(*elfdiff.Item) (Binding, error)
}

// Input is everything a livepatch module is made of.
type Input struct {
	// Tables is the compiled object with struct klp_patch, the module's entry
	// points, struct module and .modinfo.
	Tables *elfobj.File
	// Names binds undefined symbols of Tables to pieces: its new_func pointers.
	Names map[string]*elfdiff.Item
	// Fragments in the order they are placed.
	Fragments []Fragment
	// Version is the checksum of an exported symbol for __versions; ok is false when
	// there is none. Nil for kernels without CONFIG_MODVERSIONS.
	Version func(name string) (crc uint32, ok bool)
}

// StaticKeyError says that replaced code tests a static key that belongs to a
// module: such keys are read before the livepatch core could resolve them.
type StaticKeyError struct{ Function, Key string }

func (e *StaticKeyError) Error() string {
	return fmt.Sprintf("%s tests the static key %s of a module", e.Function, e.Key)
}

// Write returns the module's bytes. Equal input gives equal bytes. Errors are those
// of Bind, *StaticKeyError, or mean that the input is not what a compiler makes.
func Write(in Input) ([]byte, error) {
	m := &merger{in: in, out: newImage(), placed: map[*elfdiff.Item]*symbol{}, literals: map[string]*symbol{}}
	m.placeTables()
	for _, f := range in.Fragments {
		m.placeFragment(f)
	}
	if err := m.relocateTables(); err != nil {
		return nil, err
	}
	for _, f := range in.Fragments {
		if err := m.relocateFragment(f); err != nil {
			return nil, err
		}
	}
	if in.Version != nil {
		if err := m.addVersions(); err != nil {
			return nil, err
		}
	}
	return m.out.bytes(), nil
}

type merger struct {
	in       Input
	out      *image
	placed   map[*elfdiff.Item]*symbol
	literals map[string]*symbol
	// stub says where each section of in.Tables went.
	stub []stubSection
}

type stubSection struct {
	from *elfobj.Section
	to   *section
	base uint64
}

// placeTables copies the compiled tables' sections, debugging and notes left out.
func (m *merger) placeTables() {
	for _, s := range m.in.Tables.Sections {
		keep := s.Flags&elfobj.SHF_ALLOC != 0 || s.Name == ".modinfo"
		if !keep || strings.HasPrefix(s.Name, ".note") || strings.HasPrefix(s.Name, ".discard") {
			continue
		}
		if s.Size == 0 && s.Name != ".text" && s.Name != ".data" && s.Name != ".bss" {
			continue
		}
		to := m.out.section(s.Name, s)
		m.stub = append(m.stub, stubSection{s, to, to.append(s.Data, s.Size, s.Align)})
	}
}

// outputName merges the compiler's per-symbol sections again.
func outputName(s *elfobj.Section) string {
	base := elfdiff.SectionBase(s)
	switch base {
	case ".text.hot", ".text.startup", ".text.unlikely":
		return ".text"
	case ".data.rel.ro", ".data..read_mostly", ".data..ro_after_init", ".data.once", ".data..once":
		return ".data"
	}
	if s.Exec() && strings.HasSuffix(base, ".text") { // .sched.text, .kprobes.text, .ref.text
		return ".text"
	}
	return base
}

func (m *merger) placeFragment(f Fragment) {
	for _, it := range f.Result.Include {
		align := max(it.Section.Align, 1)
		if it.Start != 0 {
			align = min(align, 1<<bits.TrailingZeros64(it.Start))
		}
		to := m.out.section(outputName(it.Section), it.Section)
		m.placed[it] = &symbol{
			name: it.Name, sec: to, value: to.append(it.Data, it.Size, align), size: it.Size,
			typ: symbolType(it), local: true,
		}
		if it.Name == "" {
			m.placed[it].typ = elfobj.STT_NOTYPE
		} else {
			m.out.symbols = append(m.out.symbols, m.placed[it])
		}
	}
}

func symbolType(it *elfdiff.Item) elfobj.SymType {
	if it.Kind == elfdiff.Function {
		return elfobj.STT_FUNC
	}
	return elfobj.STT_OBJECT
}

// relocateTables translates the compiled tables' relocations.
func (m *merger) relocateTables() error {
	symbols := map[*elfobj.Symbol]*symbol{}
	for _, s := range m.in.Tables.Symbols {
		if s.Section == nil || s.Type == elfobj.STT_SECTION || s.Type == elfobj.STT_FILE || strings.HasPrefix(s.Name, "__UNIQUE_ID_") {
			continue
		}
		for _, p := range m.stub {
			if p.from == s.Section {
				symbols[s] = &symbol{name: s.Name, sec: p.to, value: p.base + s.Value, size: s.Size, typ: s.Type, local: s.Bind == elfobj.STB_LOCAL}
				m.out.symbols = append(m.out.symbols, symbols[s])
			}
		}
	}
	for _, p := range m.stub {
		for _, r := range p.from.Relocs {
			to, addend := symbols[r.Symbol], r.Addend
			switch {
			case to != nil:
			case r.Symbol.Section != nil:
				to, addend = m.stubTarget(r)
			case m.in.Names[r.Symbol.Name] != nil:
				to = m.placed[m.in.Names[r.Symbol.Name]]
			default:
				to = m.out.undefined(r.Symbol.Name)
			}
			if to == nil {
				return fmt.Errorf("the compiled tables refer to %q, which has no place", r.Symbol.Name)
			}
			p.to.relocs = append(p.to.relocs, reloc{p.base + r.Offset, r.Type, to, addend})
		}
	}
	return nil
}

func (m *merger) stubTarget(r elfobj.Reloc) (*symbol, int64) {
	for _, p := range m.stub {
		if p.from == r.Symbol.Section {
			return p.to.symbol(), r.Addend + int64(p.base+r.Symbol.Value)
		}
	}
	return nil, 0
}

func (m *merger) relocateFragment(f Fragment) error {
	for _, it := range f.Result.Include {
		at := m.placed[it]
		for _, r := range it.Refs {
			if err := m.relocate(f, it, at.sec, at.value, r); err != nil {
				return err
			}
		}
	}
	for _, it := range f.Result.Include {
		for _, e := range it.Entries {
			keep, err := m.keepRow(f, it, e)
			if err != nil {
				return err
			}
			if keep {
				if err := m.addRow(f, e); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addRow appends a row of a special section.
func (m *merger) addRow(f Fragment, e elfdiff.Entry) error {
	to := m.out.table(e.Table)
	base := to.append(e.Data, uint64(len(e.Data)), 1)
	if e.Pair != nil {
		m.out.table(".orc_unwind").append(e.Pair, uint64(len(e.Pair)), 1)
	}
	for _, r := range e.Refs {
		if err := m.relocate(f, nil, to, base, r); err != nil {
			return err
		}
	}
	return nil
}

// keepRow decides about rows that name a static key or static call. Those of the
// kernel itself and our own are kept. The keys of a module cannot be resolved in
// time: a call through its trampoline works without the row; a tracepoint or debug
// message of the module stays off in replaced code; for any other key nothing can be
// known, and the livepatch is refused.
func (m *merger) keepRow(f Fragment, it *elfdiff.Item, e elfdiff.Entry) (bool, error) {
	if e.Table != "__jump_table" && e.Table != ".static_call_sites" {
		return true, nil
	}
	key := e.Refs[len(e.Refs)-1].Target
	if f.Result.Included(key) {
		return true, nil
	}
	b, err := f.Bind(key)
	if err != nil {
		return false, err
	}
	switch {
	case b.Item != nil, b.Exported != "", b.Object == "vmlinux", b.Object == "":
		return true, nil
	case e.Table == ".static_call_sites", strings.HasPrefix(b.Name, "__tracepoint_"), key.Section != nil && key.Section.Name == "__dyndbg":
		return false, nil
	}
	return false, &StaticKeyError{Function: it.Name, Key: b.Name}
}

// relocate translates one reference at base in section at. it is the piece that
// refers, nil for rows of tables.
func (m *merger) relocate(f Fragment, it *elfdiff.Item, at *section, base uint64, r elfdiff.Ref) error {
	out := reloc{offset: base + r.Offset, typ: r.Type, addend: r.Delta - r.Bias}
	if to := m.local(f, it, r); to != nil {
		out.to = to
		if to.name == "" { // placed without a symbol
			out.to, out.addend = to.sec.symbol(), out.addend+int64(to.value)
		}
		at.relocs = append(at.relocs, out)
		return nil
	}
	b, err := f.Bind(r.Target)
	if err != nil {
		return err
	}
	switch {
	case b.Item != nil:
		out.to = m.placed[b.Item]
	case b.Exported != "":
		out.to = m.out.undefined(b.Exported)
	default:
		owner := f.Object
		if b.Object == "vmlinux" {
			owner = "vmlinux" // the core refuses vmlinux symbols in a module's sections
		}
		if owner != "vmlinux" && at.name == ".altinstr_replacement" {
			return fmt.Errorf("an alternative instruction refers to %s of module %s, which is found only after alternatives are applied", b.Name, b.Object)
		}
		out.to = m.out.livepatch(b)
		at.late(owner, out)
		return nil
	}
	at.relocs = append(at.relocs, out)
	return nil
}

// local is the place of what a reference means when the livepatch carries it, nil
// when it does not. The address of a replaced function is taken from the original,
// as long as it is not called: the original leads here while the livepatch is on, and
// is still there when somebody keeps the pointer after it is gone.
func (m *merger) local(f Fragment, it *elfdiff.Item, r elfdiff.Ref) *symbol {
	switch r.Target.Kind {
	case elfdiff.String, elfdiff.Constant:
		return m.literal(r.Target)
	case elfdiff.Function:
		if it != nil && it != r.Target && r.Delta == 0 && !it.Calls(r) && f.Result.Original(r.Target) != nil && !isColdOf(it, r.Target) {
			return nil
		}
	}
	return m.placed[r.Target]
}

// isColdOf tells whether one is the other's cold part: they refer to each other by
// address without being called.
func isColdOf(a, b *elfdiff.Item) bool {
	return a.Name == b.Name+".cold" || b.Name == a.Name+".cold"
}

func (m *merger) literal(it *elfdiff.Item) *symbol {
	name, align := ".rodata.str1.1", uint64(1)
	if it.Kind == elfdiff.Constant {
		name, align = it.Section.Name, it.Section.Align
	}
	key := name + "\x00" + string(it.Data)
	if s := m.literals[key]; s != nil {
		return s
	}
	to := m.out.section(name, it.Section)
	s := &symbol{sec: to, value: to.append(it.Data, uint64(len(it.Data)), align)}
	m.literals[key] = s
	return s
}
