package elfobj

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"livepatch"
)

// Modinfo holds the key=value strings of a module's .modinfo section, in order.
type Modinfo []string

// Get returns the value of the first entry with this key, "" when there is none.
func (m Modinfo) Get(key string) string {
	for _, e := range m {
		if k, v, ok := strings.Cut(e, "="); ok && k == key {
			return v
		}
	}
	return ""
}

// All returns every value of the key.
func (m Modinfo) All(key string) []string {
	var all []string
	for _, e := range m {
		if k, v, ok := strings.Cut(e, "="); ok && k == key {
			all = append(all, v)
		}
	}
	return all
}

// Modinfo reads the .modinfo section; nil when the file has none.
func (f *File) Modinfo() Modinfo {
	s := f.Section(".modinfo")
	if s == nil {
		return nil
	}
	var m Modinfo
	for e := range bytes.SplitSeq(s.Data, []byte{0}) {
		if len(e) > 0 {
			m = append(m, string(e))
		}
	}
	return m
}

// ModuleName is the name under which the kernel would show the module: name= in
// .modinfo (Linux 4.16 and later), else the name inside struct module. It is ""
// when neither is there.
func (f *File) ModuleName() string {
	if n := f.Modinfo().Get("name"); n != "" {
		return n
	}
	// struct module: enum state (4 bytes and padding), list_head (16), name.
	const nameOffset = 24
	if s := f.Section(".gnu.linkonce.this_module"); s != nil {
		return s.CString(nameOffset)
	}
	return ""
}

// ReadModule reads a livepatch module of size bytes, 1 to livepatch.MaxModuleSize,
// and says what it is and what it patches. It understands modules written in C
// against <linux/livepatch.h>, and those of kpatch-build, klp-build and this
// project's builder. Everything that is not a livepatch module is refused with
// livepatch.CodeNotLivepatch and a sentence for people; it never panics.
func ReadModule(r io.ReaderAt, size int64) (livepatch.Module, error) {
	if size < 1 || size > livepatch.MaxModuleSize {
		return livepatch.Module{}, livepatch.Errorf(livepatch.CodeNotLivepatch, "the file has %d bytes; a livepatch module has 1 to %d", size, livepatch.MaxModuleSize)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), b); err != nil {
		return livepatch.Module{}, fmt.Errorf("read module: %w", err)
	}
	return ParseModule(b)
}

// ParseModule is ReadModule for bytes in memory.
func ParseModule(b []byte) (livepatch.Module, error) {
	p, err := ParsePatch(b)
	if err != nil {
		return livepatch.Module{}, err
	}
	m := p.Module
	for _, o := range p.Objects {
		out := livepatch.Object{Name: o.Name, Functions: make([]string, 0, len(o.Functions))}
		for _, fn := range o.Functions {
			out.Functions = append(out.Functions, fn.Name)
		}
		m.Objects = append(m.Objects, out)
	}
	return m, nil
}

// Patch is a livepatch module in detail.
type Patch struct {
	// Module has everything but Objects.
	Module livepatch.Module
	// Modinfo is the module's .modinfo.
	Modinfo Modinfo
	Objects []PatchObject
}

// PatchObject is what is replaced in vmlinux or one module.
type PatchObject struct {
	Name      string
	Functions []PatchFunction
}

// PatchFunction is one replaced function.
type PatchFunction struct {
	// Name of the function that is replaced, as kallsyms shows it.
	Name string
	// Position is old_sympos: which of several symbols of this name, from 1; 0 when
	// the name is unique.
	Position uint64
	// Size of the new code in bytes; 0 when the module's symbols do not tell.
	Size uint64
}

// ParsePatch reads a livepatch module in detail; errors are those of ReadModule.
func ParsePatch(b []byte) (*Patch, error) {
	refuse := func(format string, args ...any) error {
		return livepatch.Errorf(livepatch.CodeNotLivepatch, format, args...)
	}
	f, err := Parse(b)
	switch {
	case errors.Is(err, ErrNotELF):
		return nil, refuse("the file is no kernel module: %w; if it is compressed, unpack it first", err)
	case errors.Is(err, ErrTruncated):
		return nil, refuse("the module is incomplete: %w; copy or download it again", err)
	case err != nil:
		return nil, refuse("the file is no usable kernel module: %w", err)
	case !f.Relocatable:
		return nil, refuse("the file is a linked ELF file, not a kernel module (.ko)")
	}
	info := f.Modinfo()
	name := f.ModuleName()
	switch {
	case info == nil || !livepatch.ValidModuleName(name):
		return nil, refuse("the file is an object file without module information; give the linked module (.ko)")
	case info.Get("livepatch") == "":
		return nil, refuse("%s is a kernel module, but not a livepatch: it lacks MODULE_INFO(livepatch, \"Y\")", name)
	}
	sum := sha256.Sum256(b)
	p := &Patch{Modinfo: info, Module: livepatch.Module{
		Name: name, VerMagic: info.Get("vermagic"), SrcVersion: info.Get("srcversion"),
		Signed: hasSignature(b), Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:]),
	}}
	if p.Objects, p.Module.Replace = f.patched(); len(p.Objects) == 0 {
		return nil, refuse("%s says that it is a livepatch, but no list of patched functions is found in it", name)
	}
	return p, nil
}

// signatureMagic ends a signed module: include/linux/module_signature.h.
const signatureMagic = "~Module signature appended~\n"

// hasSignature tells whether a PKCS#7 signature is appended: the message, then
// struct module_signature (12 bytes: id_type 2 is PKCS#7, the last four are the
// message's length, big endian), then the magic.
func hasSignature(b []byte) bool {
	b, ok := bytes.CutSuffix(b, []byte(signatureMagic))
	if !ok || len(b) < 12 {
		return false
	}
	trailer := b[len(b)-12:]
	n := binary.BigEndian.Uint32(trailer[8:])
	const asn1Sequence = 0x30
	return trailer[2] == 2 && n > 0 && uint64(n) <= uint64(len(b)-12) && b[len(b)-12-int(n)] == asn1Sequence
}
