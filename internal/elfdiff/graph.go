package elfdiff

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"livepatch/internal/elfobj"
)

// Kind tells what an Item is.
type Kind int

// The kinds.
const (
	// Function is code under a symbol.
	Function Kind = iota
	// Data is a variable under a symbol.
	Data
	// String is a string literal; equal ones are equal whatever section they are in.
	String
	// Constant is an entry of a mergeable constant section.
	Constant
	// Anonymous is code or constant data without a symbol, such as the replacement
	// of an alternative.
	Anonymous
	// Undefined is a symbol defined in another object.
	Undefined
)

// Item is a piece of an object that stands on its own.
type Item struct {
	Kind Kind
	// Name is the symbol's name; "" for strings, constants and anonymous pieces.
	Name string
	// Symbol is nil for pieces without one.
	Symbol *elfobj.Symbol
	// Section and Start say where the piece is; nil for undefined ones.
	Section *elfobj.Section
	Start   uint64
	Size    uint64
	// Data is nil where the section has no bytes (.bss).
	Data []byte
	// Refs are in order of offset.
	Refs []Ref
	// Entries are the rows of special sections that belong to this code.
	Entries []Entry
	// Traceable tells that the function calls __fentry__, which a livepatch needs.
	Traceable bool
	// Aliases are further symbols at the same place.
	Aliases []string
}

// Ref is one relocation, in terms of items: the place Offset of the item refers to
// Target plus Delta.
type Ref struct {
	Offset uint64
	Type   uint32
	Target *Item
	// Delta is the distance from the target's start, free of what the relocation
	// type and the instruction add.
	Delta int64
	// Bias is what is to be subtracted from Delta to get the relocation's addend:
	// the bytes between the field and the end of its instruction.
	Bias int64
}

// Entry is one row of a special section.
type Entry struct {
	Table string
	Data  []byte
	Refs  []Ref
	// Pair is the row of the table that runs parallel: .orc_unwind for
	// .orc_unwind_ip.
	Pair []byte
}

// Init tells whether the piece is gone once the kernel or module is initialised.
func (it *Item) Init() bool {
	return it.Section != nil && (strings.HasPrefix(it.Section.Name, ".init.") || strings.HasPrefix(it.Section.Name, ".meminit."))
}

// Writable tells whether the piece is variable data.
func (it *Item) Writable() bool {
	return it.Section != nil && it.Section.Flags&elfobj.SHF_WRITE != 0
}

// Calls tells whether the reference is that of a call or jump instruction, as opposed
// to one that takes an address. The assembler writes R_X86_64_PLT32 for global
// functions and R_X86_64_PC32, as for any operand, for local ones.
func (it *Item) Calls(r Ref) bool {
	if r.Type == elfobj.R_X86_64_PLT32 {
		return true
	}
	if r.Type != elfobj.R_X86_64_PC32 || it.Section == nil || !it.Section.Exec() || r.Offset < 1 || r.Offset > uint64(len(it.Data)) {
		return false
	}
	const call, jump, escape, conditional = 0xe8, 0xe9, 0x0f, 0x80
	switch op := it.Data[r.Offset-1]; {
	case op == call, op == jump:
		return true
	default:
		return r.Offset >= 2 && it.Data[r.Offset-2] == escape && op&0xf0 == conditional
	}
}

// Graph is an object as items.
type Graph struct {
	// Items are the functions and variables in order of section and offset.
	Items []*Item
	file  *elfobj.File
	// bySection lists each section's items in order of offset.
	bySection map[*elfobj.Section][]*Item
	bySymbol  map[*elfobj.Symbol]*Item
	undefined map[string]*Item
	literals  map[string]*Item
	anonymous map[*elfobj.Section][]*Item
}

// NewGraph reads an x86-64 object. Errors mean that the object is not one a
// compiler would write.
func NewGraph(f *elfobj.File) (*Graph, error) {
	if !f.Relocatable || f.Machine != elfobj.EM_X86_64 {
		return nil, fmt.Errorf("not an x86-64 object file")
	}
	g := &Graph{
		file: f, bySection: map[*elfobj.Section][]*Item{}, bySymbol: map[*elfobj.Symbol]*Item{},
		undefined: map[string]*Item{}, literals: map[string]*Item{}, anonymous: map[*elfobj.Section][]*Item{},
	}
	g.addSymbols()
	g.addAnonymous()
	for _, list := range []map[*elfobj.Section][]*Item{g.bySection, g.anonymous} {
		for s, items := range list {
			g.addRefs(s, items)
		}
	}
	if err := g.addTables(); err != nil {
		return nil, err
	}
	return g, nil
}

// mergeable tells whether the linker may move the pieces of the section.
func mergeable(s *elfobj.Section) bool { return s.Flags&elfobj.SHF_MERGE != 0 && s.Size > 0 }

func (g *Graph) addSymbols() {
	for _, sym := range g.file.Symbols {
		s := sym.Section
		if s == nil || sym.Type == elfobj.STT_SECTION || sym.Type == elfobj.STT_FILE || sym.Name == "" ||
			s.Flags&elfobj.SHF_ALLOC == 0 || mergeable(s) || sym.Value > s.Size || special(s.Name) {
			continue
		}
		kind := Data
		if s.Exec() {
			kind = Function
		}
		g.bySection[s] = append(g.bySection[s], &Item{Kind: kind, Name: sym.Name, Symbol: sym, Section: s, Start: sym.Value, Size: sym.Size})
	}
	for _, s := range g.file.Sections {
		items := g.bySection[s]
		slices.SortStableFunc(items, func(a, b *Item) int {
			return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(rank(a), rank(b)))
		})
		g.bySection[s] = g.dropAliases(items)
		g.setSizes(g.bySection[s])
		g.Items = append(g.Items, g.bySection[s]...)
	}
}

// rank prefers, of several symbols at one place, the one that tells most.
func rank(it *Item) int {
	switch {
	case it.Symbol.Type == elfobj.STT_NOTYPE:
		return 2
	case it.Symbol.Bind == elfobj.STB_LOCAL:
		return 1
	}
	return 0
}

func (g *Graph) dropAliases(items []*Item) []*Item {
	var out []*Item
	for _, it := range items {
		if n := len(out); n > 0 && out[n-1].Start == it.Start {
			out[n-1].Aliases = append(out[n-1].Aliases, it.Name)
			g.bySymbol[it.Symbol] = out[n-1]
			continue
		}
		out = append(out, it)
		g.bySymbol[it.Symbol] = it
	}
	return out
}

func (g *Graph) setSizes(items []*Item) {
	for i, it := range items {
		end := it.Section.Size
		if i+1 < len(items) {
			end = items[i+1].Start
		}
		if it.Size == 0 || it.Size > end-it.Start {
			it.Size = end - it.Start
		}
		if d := it.Section.Data; uint64(len(d)) >= it.Start+it.Size {
			it.Data = d[it.Start : it.Start+it.Size]
		}
	}
}

// addAnonymous cuts sections without symbols into pieces. Code is cut where
// something refers to; constant data stays whole.
func (g *Graph) addAnonymous() {
	starts := map[*elfobj.Section]map[uint64]bool{}
	for _, s := range g.file.Sections {
		for _, r := range s.Relocs {
			to := r.Symbol.Section
			if to == nil || to.Flags&elfobj.SHF_ALLOC == 0 || mergeable(to) || len(g.bySection[to]) > 0 || special(to.Name) {
				continue
			}
			if starts[to] == nil {
				starts[to] = map[uint64]bool{0: true}
			}
			if off := r.Symbol.Value + uint64(r.Addend+bias(s, r)); to.Exec() && off <= to.Size {
				starts[to][off] = true
			}
		}
	}
	for s, set := range starts {
		offs := make([]uint64, 0, len(set))
		for o := range set {
			offs = append(offs, o)
		}
		slices.Sort(offs)
		for i, o := range offs {
			end := s.Size
			if i+1 < len(offs) {
				end = offs[i+1]
			}
			it := &Item{Kind: Anonymous, Section: s, Start: o, Size: end - o}
			if uint64(len(s.Data)) >= end {
				it.Data = s.Data[o:end]
			}
			g.anonymous[s] = append(g.anonymous[s], it)
		}
	}
}

func (g *Graph) addRefs(s *elfobj.Section, items []*Item) {
	relocs := slices.Clone(s.Relocs)
	slices.SortStableFunc(relocs, func(a, b elfobj.Reloc) int { return cmp.Compare(a.Offset, b.Offset) })
	i := 0
	for _, it := range items {
		for i < len(relocs) && relocs[i].Offset < it.Start {
			i++
		}
		for ; i < len(relocs) && relocs[i].Offset < it.Start+it.Size; i++ {
			it.Refs = append(it.Refs, g.ref(s, relocs[i], it.Start))
		}
	}
}

// ref makes a relocation of section s relative to the piece that starts at base.
func (g *Graph) ref(s *elfobj.Section, r elfobj.Reloc, base uint64) Ref {
	b := bias(s, r)
	ref := Ref{Offset: r.Offset - base, Type: r.Type, Bias: b}
	ref.Target, ref.Delta = g.target(r.Symbol, r.Addend+b)
	return ref
}

func (g *Graph) target(sym *elfobj.Symbol, off int64) (*Item, int64) {
	s := sym.Section
	if s == nil {
		it := g.undefined[sym.Name]
		if it == nil {
			it = &Item{Kind: Undefined, Name: sym.Name, Symbol: sym}
			g.undefined[sym.Name] = it
		}
		return it, off
	}
	at := int64(sym.Value) + off
	if mergeable(s) {
		return g.literal(s, at)
	}
	if it := g.bySymbol[sym]; it != nil {
		return it, at - int64(it.Start)
	}
	for _, items := range [][]*Item{g.bySection[s], g.anonymous[s]} {
		if len(items) > 0 {
			it := pieceAt(items, at)
			return it, at - int64(it.Start)
		}
	}
	// A section of a kind that no item is made of: special tables, debug data.
	it := &Item{Kind: Anonymous, Section: s, Size: s.Size, Data: s.Data}
	g.anonymous[s] = append(g.anonymous[s], it)
	return it, at
}

// pieceAt is the piece that holds the offset: the last one that starts at or before it.
func pieceAt(items []*Item, off int64) *Item {
	i, ok := slices.BinarySearchFunc(items, off, func(it *Item, off int64) int { return cmp.Compare(int64(it.Start), off) })
	if !ok && i > 0 {
		i--
	}
	return items[min(i, len(items)-1)]
}

// literal is the string or constant at an offset of a mergeable section.
func (g *Graph) literal(s *elfobj.Section, off int64) (*Item, int64) {
	kind, start := String, off
	var data []byte
	size := int64(1)
	if s.EntSize <= s.Size {
		size = int64(max(s.EntSize, 1))
	}
	if off >= 0 && off < int64(len(s.Data)) {
		if s.Flags&elfobj.SHF_STRINGS != 0 && size == 1 {
			data = append([]byte(s.CString(uint64(off))), 0)
		} else {
			kind, start = Constant, off-off%size
			data = s.Data[start:min(start+size, int64(len(s.Data)))]
		}
	}
	key := fmt.Sprintf("%d:%d:%s", kind, size, data)
	it := g.literals[key]
	if it == nil {
		it = &Item{Kind: kind, Section: s, Start: uint64(max(start, 0)), Size: uint64(len(data)), Data: data}
		g.literals[key] = it
	}
	return it, off - start
}

// bias is how far the place that a relocation in code is relative to, the end of
// its instruction, is behind the field: 4, plus the immediate that may follow a
// rip-relative operand. In tables, and for absolute relocations, it is 0.
func bias(s *elfobj.Section, r elfobj.Reloc) int64 {
	if !s.Exec() || r.Type != elfobj.R_X86_64_PC32 && r.Type != elfobj.R_X86_64_PLT32 {
		return 0
	}
	return 4 + immediate(s.Data, r.Offset)
}

// immediate is the size of the immediate behind a rip-relative operand whose
// displacement is at off: Intel's manual, volume 2, appendix A.
func immediate(code []byte, off uint64) int64 {
	if off < 2 || off > uint64(len(code)) || code[off-1]&0xc7 != 0x05 {
		return 0
	}
	opcode, reg := code[off-2], code[off-1]>>3&7
	if off >= 3 && code[off-3] == 0x0f {
		switch opcode {
		case 0xba, 0xa4, 0xac:
			return 1
		case 0xc0, 0xc1, 0xc7: // xadd, cmpxchg16b: no immediate
			return 0
		}
	}
	word := int64(4)
	for i := off - 3; off >= 3 && i < off && off-i <= 4 && (code[i] == 0x66 || code[i]&0xf0 == 0x40); i-- {
		if code[i] == 0x66 {
			word = 2
		}
	}
	switch {
	case opcode == 0x80, opcode == 0x83, opcode == 0xc6, opcode == 0x6b, opcode == 0xc0, opcode == 0xc1, opcode == 0xf6 && reg < 2:
		return 1
	case opcode == 0x81, opcode == 0xc7, opcode == 0x69, opcode == 0xf7 && reg < 2:
		return word
	}
	return 0
}
