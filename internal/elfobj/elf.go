package elfobj

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
)

// The ELF types that a reader of objects meets; their constants are in this
// package too, so that no other package needs debug/elf.
type (
	Machine     = elf.Machine
	SectionType = elf.SectionType
	SectionFlag = elf.SectionFlag
	SymBind     = elf.SymBind
	SymType     = elf.SymType
)

// Constants of the ELF specification, under the names of elf(5).
const (
	SHT_NULL     = elf.SHT_NULL
	SHT_PROGBITS = elf.SHT_PROGBITS
	SHT_SYMTAB   = elf.SHT_SYMTAB
	SHT_STRTAB   = elf.SHT_STRTAB
	SHT_RELA     = elf.SHT_RELA
	SHT_REL      = elf.SHT_REL
	SHT_NOBITS   = elf.SHT_NOBITS
	SHT_NOTE     = elf.SHT_NOTE
	SHT_GROUP    = elf.SHT_GROUP

	SHF_WRITE     = elf.SHF_WRITE
	SHF_ALLOC     = elf.SHF_ALLOC
	SHF_EXECINSTR = elf.SHF_EXECINSTR
	SHF_MERGE     = elf.SHF_MERGE
	SHF_STRINGS   = elf.SHF_STRINGS
	SHF_INFO_LINK = elf.SHF_INFO_LINK
	SHF_GROUP     = elf.SHF_GROUP

	STB_LOCAL  = elf.STB_LOCAL
	STB_GLOBAL = elf.STB_GLOBAL
	STB_WEAK   = elf.STB_WEAK

	STT_NOTYPE  = elf.STT_NOTYPE
	STT_OBJECT  = elf.STT_OBJECT
	STT_FUNC    = elf.STT_FUNC
	STT_SECTION = elf.STT_SECTION
	STT_FILE    = elf.STT_FILE

	EM_X86_64 = elf.EM_X86_64

	R_X86_64_64    = uint32(elf.R_X86_64_64)
	R_X86_64_PC32  = uint32(elf.R_X86_64_PC32)
	R_X86_64_PLT32 = uint32(elf.R_X86_64_PLT32)
	R_X86_64_32    = uint32(elf.R_X86_64_32)
	R_X86_64_32S   = uint32(elf.R_X86_64_32S)
	R_X86_64_PC64  = uint32(elf.R_X86_64_PC64)

	SHN_UNDEF  = uint16(elf.SHN_UNDEF)
	SHN_ABS    = uint16(elf.SHN_ABS)
	SHN_COMMON = uint16(elf.SHN_COMMON)
	// SHN_LIVEPATCH marks a symbol that the kernel's livepatch core resolves, and
	// SHF_RELA_LIVEPATCH a relocation section that it applies: include/uapi/linux/elf.h.
	SHN_LIVEPATCH      = uint16(0xff20)
	SHF_RELA_LIVEPATCH = SectionFlag(0x00100000)
)

// ErrNotELF means that the bytes are no 64-bit ELF file.
var ErrNotELF = errors.New("not a 64-bit ELF file")

// ErrTruncated means that the file ends before what its headers promise.
var ErrTruncated = errors.New("the ELF file is cut short")

// File is an ELF file in memory: sections, with their relocations, and symbols,
// bound to each other by pointers.
type File struct {
	Machine Machine
	// Relocatable is true for objects and modules, false for linked images.
	Relocatable bool
	Order       binary.ByteOrder
	// Flags is e_flags.
	Flags uint32
	// Sections in the file's order. Index 0 is the null section.
	Sections []*Section
	// Symbols in the file's order. Index 0 is the null symbol. Nil without .symtab.
	Symbols []*Symbol
}

// Section is one section. Relocation sections are not listed apart: their entries
// are the Relocs of the section they apply to, except in .klp.rela sections.
type Section struct {
	Index   int
	Name    string
	Type    SectionType
	Flags   SectionFlag
	Addr    uint64
	Align   uint64
	EntSize uint64
	// Size in bytes; for SHT_NOBITS it is not backed by Data.
	Size uint64
	Link uint32
	Info uint32
	// Data aliases the bytes given to Parse: do not change them.
	Data []byte
	// Relocs in the file's order.
	Relocs []Reloc
}

// Symbol is one symbol.
type Symbol struct {
	Index int
	Name  string
	Bind  SymBind
	Type  SymType
	Other byte
	// Section is where it is defined; nil for undefined, absolute, common and
	// livepatch symbols, which Shndx tells apart.
	Section *Section
	Shndx   uint16
	// Value is the offset into Section in relocatable files, the address in linked
	// ones.
	Value uint64
	Size  uint64
}

// Reloc is one relocation with addend.
type Reloc struct {
	Offset uint64
	Type   uint32
	Symbol *Symbol
	Addend int64
}

// Undefined tells whether the symbol is to be found elsewhere.
func (s *Symbol) Undefined() bool { return s.Section == nil && s.Shndx == SHN_UNDEF }

// Exec tells whether the section holds code.
func (s *Section) Exec() bool { return s.Flags&SHF_EXECINSTR != 0 }

// Section returns the first section of this name, or nil.
func (f *File) Section(name string) *Section {
	for _, s := range f.Sections {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Parse reads a 64-bit ELF file. Errors wrap ErrNotELF or ErrTruncated where that
// is what is wrong. The file's Data alias b.
func Parse(b []byte) (f *File, err error) {
	// debug/elf is not written for hostile input: a panic in it is our error.
	defer func() {
		if r := recover(); r != nil {
			f, err = nil, fmt.Errorf("malformed ELF file: %v", r)
		}
	}()
	if len(b) < 64 || !bytes.HasPrefix(b, []byte(elf.ELFMAG)) || b[elf.EI_CLASS] != byte(elf.ELFCLASS64) {
		return nil, ErrNotELF
	}
	if err := checkHeader(b); err != nil {
		return nil, err
	}
	ef, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("read ELF headers: %w", err)
	}
	f = &File{Machine: ef.Machine, Relocatable: ef.Type == elf.ET_REL, Order: ef.ByteOrder, Flags: ef.ByteOrder.Uint32(b[48:])}
	if err := f.readSections(ef, b); err != nil {
		return nil, err
	}
	if err := f.readSymbols(); err != nil {
		return nil, err
	}
	return f, f.readRelocs()
}

// checkHeader bounds the section header table before debug/elf allocates for it.
func checkHeader(b []byte) error {
	var order binary.ByteOrder = binary.LittleEndian
	if b[elf.EI_DATA] == byte(elf.ELFDATA2MSB) {
		order = binary.BigEndian
	}
	off, n, size := order.Uint64(b[40:]), uint64(order.Uint16(b[60:])), uint64(order.Uint16(b[58:]))
	if n == 0 || off == 0 {
		return errors.New("the ELF file has no sections")
	}
	if off > uint64(len(b)) || n*size > uint64(len(b))-off {
		return fmt.Errorf("section headers: %w", ErrTruncated)
	}
	return nil
}

func (f *File) readSections(ef *elf.File, b []byte) error {
	for i, es := range ef.Sections {
		s := &Section{
			Index: i, Name: es.Name, Type: es.Type, Flags: es.Flags, Addr: es.Addr, Align: es.Addralign,
			EntSize: es.Entsize, Size: es.FileSize, Link: es.Link, Info: es.Info,
		}
		if s.Type != SHT_NOBITS && s.Type != SHT_NULL {
			if es.Offset > uint64(len(b)) || es.FileSize > uint64(len(b))-es.Offset {
				return fmt.Errorf("section %q: %w", es.Name, ErrTruncated)
			}
			end := es.Offset + es.FileSize
			s.Data = b[es.Offset:end:end]
		}
		f.Sections = append(f.Sections, s)
	}
	return nil
}

const symSize, relaSize = 24, 24

func (f *File) readSymbols() error {
	var tab *Section
	for _, s := range f.Sections {
		if s.Type == SHT_SYMTAB {
			tab = s
			break
		}
	}
	if tab == nil {
		return nil
	}
	if int64(tab.Link) >= int64(len(f.Sections)) {
		return errors.New("the symbol table's string table does not exist")
	}
	names := f.Sections[tab.Link].Data
	for i := range len(tab.Data) / symSize {
		e := tab.Data[i*symSize:]
		sym := &Symbol{
			Index: i, Name: stringAt(names, uint64(f.Order.Uint32(e))),
			Bind: elf.ST_BIND(e[4]), Type: elf.ST_TYPE(e[4]), Other: e[5],
			Shndx: f.Order.Uint16(e[6:]), Value: f.Order.Uint64(e[8:]), Size: f.Order.Uint64(e[16:]),
		}
		switch {
		case sym.Shndx == uint16(elf.SHN_XINDEX):
			return errors.New("the ELF file has more than 65,279 sections, which is not supported")
		case sym.Shndx != SHN_UNDEF && sym.Shndx < uint16(elf.SHN_LORESERVE):
			if int(sym.Shndx) >= len(f.Sections) {
				return fmt.Errorf("symbol %q is in section %d, which does not exist", sym.Name, sym.Shndx)
			}
			sym.Section = f.Sections[sym.Shndx]
			if sym.Type == STT_SECTION && sym.Name == "" {
				sym.Name = sym.Section.Name
			}
		}
		f.Symbols = append(f.Symbols, sym)
	}
	return nil
}

func (f *File) readRelocs() error {
	for _, s := range f.Sections {
		if s.Type != SHT_RELA || int64(s.Info) >= int64(len(f.Sections)) || s.Info == 0 {
			continue
		}
		to := f.Sections[s.Info]
		if s.Flags&SHF_RELA_LIVEPATCH != 0 {
			to = s // they stay apart: the kernel applies them at another time
		}
		for i := range len(s.Data) / relaSize {
			e := s.Data[i*relaSize:]
			info := f.Order.Uint64(e[8:])
			n := info >> 32
			if n >= uint64(len(f.Symbols)) {
				return fmt.Errorf("relocation %d of %q names symbol %d, which does not exist", i, to.Name, n)
			}
			to.Relocs = append(to.Relocs, Reloc{
				Offset: f.Order.Uint64(e), Type: uint32(info), Symbol: f.Symbols[n], Addend: int64(f.Order.Uint64(e[16:])),
			})
		}
	}
	return nil
}

// stringAt reads the NUL-terminated string at off, "" when there is none.
func stringAt(b []byte, off uint64) string {
	if off >= uint64(len(b)) {
		return ""
	}
	b = b[off:]
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return string(b[:i])
	}
	return ""
}

// CString reads the NUL-terminated string at off in the section, "" when there is
// none.
func (s *Section) CString(off uint64) string { return stringAt(s.Data, off) }
