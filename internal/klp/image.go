package klp

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"livepatch/internal/elfobj"
)

// image is the module while it grows.
type image struct {
	sections []*section
	symbols  []*symbol
	// undef and klp are symbols found elsewhere, by name.
	undef map[string]*symbol
	klp   map[string]*symbol
}

type section struct {
	name   string
	typ    elfobj.SectionType
	flags  elfobj.SectionFlag
	align  uint64
	ent    uint64
	data   []byte
	size   uint64
	relocs []reloc
	// byOwner are the relocations that the livepatch core applies when the owner,
	// "vmlinux" or a module, is there.
	byOwner map[string][]reloc
	self    *symbol
	index   uint32
}

type symbol struct {
	name        string
	sec         *section
	value, size uint64
	typ         elfobj.SymType
	local       bool
	shndx       uint16 // when sec is nil
	index       uint32
}

type reloc struct {
	offset uint64
	typ    uint32
	to     *symbol
	addend int64
}

func newImage() *image { return &image{undef: map[string]*symbol{}, klp: map[string]*symbol{}} }

// section finds or makes the section, with the attributes of like.
func (im *image) section(name string, like *elfobj.Section) *section {
	s := im.find(name)
	if s == nil {
		s = &section{name: name, typ: like.Type, flags: like.Flags &^ (elfobj.SHF_INFO_LINK | elfobj.SHF_GROUP), ent: like.EntSize, align: 1, byOwner: map[string][]reloc{}}
		im.sections = append(im.sections, s)
	}
	if like.Type != elfobj.SHT_NOBITS && s.typ == elfobj.SHT_NOBITS {
		s.typ, s.data = like.Type, make([]byte, s.size)
	}
	s.flags |= like.Flags & (elfobj.SHF_WRITE | elfobj.SHF_ALLOC | elfobj.SHF_EXECINSTR)
	return s
}

// table finds or makes a special section.
func (im *image) table(name string) *section {
	like := &elfobj.Section{Type: elfobj.SHT_PROGBITS, Flags: elfobj.SHF_ALLOC}
	if name == "__jump_table" || name == "__bug_table" || name == ".static_call_sites" {
		like.Flags |= elfobj.SHF_WRITE
	}
	s := im.section(name, like)
	s.align = max(s.align, 8) // rows may hold pointers; they follow each other without gaps
	return s
}

func (im *image) find(name string) *section {
	for _, s := range im.sections {
		if s.name == name {
			return s
		}
	}
	return nil
}

// append adds size bytes, those of data where there are any, and returns their
// offset.
func (s *section) append(data []byte, size, align uint64) uint64 {
	align = max(align, 1)
	s.align = max(s.align, align)
	off := (s.size + align - 1) / align * align
	if s.typ != elfobj.SHT_NOBITS {
		fill := byte(0)
		if s.flags&elfobj.SHF_EXECINSTR != 0 {
			fill = 0xcc // int3: nobody runs what is between functions
		}
		for uint64(len(s.data)) < off {
			s.data = append(s.data, fill)
		}
		s.data = append(s.data, data...)
		s.data = append(s.data, make([]byte, size-uint64(len(data)))...)
	}
	s.size = off + size
	return off
}

// symbol is the section's own symbol.
func (s *section) symbol() *symbol {
	if s.self == nil {
		s.self = &symbol{sec: s, typ: elfobj.STT_SECTION, local: true}
	}
	return s.self
}

func (s *section) late(owner string, r reloc) { s.byOwner[owner] = append(s.byOwner[owner], r) }

func (im *image) undefined(name string) *symbol {
	s := im.undef[name]
	if s == nil {
		s = &symbol{name: name, shndx: elfobj.SHN_UNDEF}
		im.undef[name] = s
	}
	return s
}

// livepatch is the symbol .klp.sym.OBJECT.NAME,POSITION.
func (im *image) livepatch(b Binding) *symbol {
	name := fmt.Sprintf(".klp.sym.%s.%s,%d", b.Object, b.Name, b.Position)
	s := im.klp[name]
	if s == nil {
		s = &symbol{name: name, shndx: elfobj.SHN_LIVEPATCH}
		im.klp[name] = s
	}
	return s
}

// addVersions writes __versions: struct modversion_info {unsigned long crc; char
// name[56]} for every symbol that the loader resolves and for module_layout.
func (m *merger) addVersions() error {
	names := []string{"module_layout"}
	for n := range m.out.undef {
		names = append(names, n)
	}
	slices.Sort(names)
	to := m.out.section("__versions", &elfobj.Section{Type: elfobj.SHT_PROGBITS, Flags: elfobj.SHF_ALLOC})
	for _, n := range names {
		crc, ok := m.in.Version(n)
		if !ok {
			return fmt.Errorf("the kernel's Module.symvers has no checksum of %s", n)
		}
		row := make([]byte, 64)
		if len(n) > len(row)-9 {
			return fmt.Errorf("the name of %s is too long for a module's version table", n)
		}
		binary.LittleEndian.PutUint64(row, uint64(crc))
		copy(row[8:], n)
		to.append(row, uint64(len(row)), 32)
	}
	return nil
}

// sortedSymbols lists symbols by name.
func sortedSymbols(m map[string]*symbol) []*symbol {
	l := make([]*symbol, 0, len(m))
	for _, s := range m {
		l = append(l, s)
	}
	slices.SortFunc(l, func(a, b *symbol) int { return cmp.Compare(a.name, b.name) })
	return l
}

// bytes lays the module out: sections, relocations, symbols, names, headers.
func (im *image) bytes() []byte {
	w := &writer{names: newStrings(), symNames: newStrings()}
	w.add(header{}, nil) // the null section
	for _, s := range im.sections {
		s.index = uint32(len(w.headers))
		h := header{name: s.name, typ: s.typ, flags: s.flags, align: s.align, ent: s.ent, size: s.size}
		w.add(h, s.data)
	}
	symtab, locals := im.symtab(w.symNames)
	relas := 0
	for _, s := range im.sections {
		if len(s.relocs) > 0 {
			relas++
		}
		relas += len(s.byOwner)
	}
	symIndex := uint32(len(w.headers) + relas)
	for _, s := range im.sections {
		if len(s.relocs) > 0 {
			w.add(header{name: ".rela" + s.name, typ: elfobj.SHT_RELA, flags: elfobj.SHF_INFO_LINK, align: 8, ent: 24, link: symIndex, info: s.index}, relaBytes(s.relocs))
		}
		owners := make([]string, 0, len(s.byOwner))
		for o := range s.byOwner {
			owners = append(owners, o)
		}
		slices.Sort(owners)
		for _, o := range owners {
			flags := elfobj.SHF_ALLOC | elfobj.SHF_INFO_LINK | elfobj.SHF_RELA_LIVEPATCH
			w.add(header{name: ".klp.rela." + o + "." + s.name, typ: elfobj.SHT_RELA, flags: flags, align: 8, ent: 24, link: symIndex, info: s.index}, relaBytes(s.byOwner[o]))
		}
	}
	w.add(header{name: ".symtab", typ: elfobj.SHT_SYMTAB, align: 8, ent: 24, link: symIndex + 1, info: locals}, symtab)
	w.add(header{name: ".strtab", typ: elfobj.SHT_STRTAB, align: 1}, w.symNames.data)
	return w.finish()
}

// symtab numbers and writes the symbols, local ones first as ELF wants it, and
// returns how many are local.
func (im *image) symtab(names *stringTable) (data []byte, locals uint32) {
	var all []*symbol
	for _, s := range im.sections {
		if s.self != nil {
			all = append(all, s.self)
		}
	}
	for _, local := range []bool{true, false} {
		for _, s := range im.symbols {
			if s.local == local {
				all = append(all, s)
			}
		}
		if local {
			locals = uint32(len(all)) + 1
		}
	}
	all = append(all, sortedSymbols(im.klp)...)
	all = append(all, sortedSymbols(im.undef)...)
	data = make([]byte, 24)
	for i, s := range all {
		s.index = uint32(i) + 1
		var e [24]byte
		binary.LittleEndian.PutUint32(e[:], names.add(s.name))
		bind := elfobj.STB_GLOBAL
		if s.local {
			bind = elfobj.STB_LOCAL
		}
		e[4] = byte(bind)<<4 | byte(s.typ)&0xf
		shndx := s.shndx
		if s.sec != nil {
			shndx = uint16(s.sec.index)
		}
		binary.LittleEndian.PutUint16(e[6:], shndx)
		binary.LittleEndian.PutUint64(e[8:], s.value)
		binary.LittleEndian.PutUint64(e[16:], s.size)
		data = append(data, e[:]...)
	}
	return data, locals
}

func relaBytes(relocs []reloc) []byte {
	relocs = slices.Clone(relocs)
	slices.SortStableFunc(relocs, func(a, b reloc) int { return cmp.Compare(a.offset, b.offset) })
	var b bytes.Buffer
	for _, r := range relocs {
		var e [24]byte
		binary.LittleEndian.PutUint64(e[:], r.offset)
		binary.LittleEndian.PutUint64(e[8:], uint64(r.to.index)<<32|uint64(r.typ))
		binary.LittleEndian.PutUint64(e[16:], uint64(r.addend))
		b.Write(e[:])
	}
	return b.Bytes()
}
