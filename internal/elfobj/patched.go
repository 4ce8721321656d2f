package elfobj

import (
	"bytes"
	"cmp"
	"slices"
)

// maxFunctions bounds how many replaced functions are listed.
const maxFunctions = 1 << 16

// patched finds what the module replaces: in the tables of kpatch-build and
// klp-build where they are, else in the statically initialised struct klp_patch.
func (f *File) patched() (objects []PatchObject, replace bool) {
	if s := f.Section(".kpatch.funcs"); s != nil {
		return f.kpatchObjects(s), f.setsReplace()
	}
	for _, name := range []string{".init.klp_objects", "__klp_objects"} {
		if s := f.Section(name); s != nil {
			return f.klpBuildObjects(s), f.setsReplace()
		}
	}
	return f.staticPatch()
}

// pointers are a section's relocations that store a whole address, by offset.
type pointers map[uint64]target

// target is where a pointer leads.
type target struct {
	sym *Symbol
	sec *Section // nil when undefined
	off uint64
}

// abs64 tells whether a relocation type stores a 64-bit address.
func (f *File) abs64(typ uint32) bool {
	const aarch64Abs64, ppc64Addr64, s390Abs64 = 257, 38, 22
	switch f.Machine {
	case EM_X86_64:
		return typ == R_X86_64_64
	case 183: // EM_AARCH64
		return typ == aarch64Abs64
	case 21: // EM_PPC64
		return typ == ppc64Addr64
	case 22: // EM_S390
		return typ == s390Abs64
	}
	return false
}

func (f *File) pointers(s *Section) pointers {
	p := make(pointers, len(s.Relocs))
	for _, r := range s.Relocs {
		if f.abs64(r.Type) {
			p[r.Offset] = target{sym: r.Symbol, sec: r.Symbol.Section, off: r.Symbol.Value + uint64(r.Addend)}
		}
	}
	return p
}

// text is the string a pointer leads to; ok is false when it leads to none.
func (t target) text() (s string, ok bool) {
	if t.sec == nil || t.sec.Exec() {
		return "", false
	}
	s = t.sec.CString(t.off)
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return "", false
		}
	}
	return s, s != ""
}

// code tells whether the pointer leads to a function.
func (t target) code() bool { return t.sec != nil && t.sec.Exec() && t.off < t.sec.Size }

func (f *File) u64(s *Section, off uint64) uint64 {
	if off > uint64(len(s.Data)) || uint64(len(s.Data))-off < 8 {
		return 0
	}
	return f.Order.Uint64(s.Data[off:])
}

func (f *File) function(name string, code target, pos uint64) PatchFunction {
	size := uint64(0)
	for _, s := range f.Symbols {
		if s.Type == STT_FUNC && s.Section == code.sec && s.Value == code.off {
			size = s.Size
			break
		}
	}
	return PatchFunction{Name: name, Position: pos, Size: size}
}

// kpatchObjects reads the .kpatch.funcs table of kpatch-build, an array of
// {new_addr, new_size, old_addr, old_size, sympos, name, objname}, 56 bytes each.
func (f *File) kpatchObjects(s *Section) []PatchObject {
	const size, symposAt, nameAt, objectAt = 56, 32, 40, 48
	p := f.pointers(s)
	var objects []PatchObject
	for o := uint64(0); o+size <= s.Size && o/size < maxFunctions; o += size {
		name, ok1 := p[o+nameAt].text()
		object, ok2 := p[o+objectAt].text()
		if ok1 && ok2 {
			objects = addFunction(objects, object, f.function(name, p[o], f.u64(s, o+symposAt)))
		}
	}
	return objects
}

func addFunction(objects []PatchObject, object string, fn PatchFunction) []PatchObject {
	i := slices.IndexFunc(objects, func(o PatchObject) bool { return o.Name == object })
	if i < 0 {
		objects, i = append(objects, PatchObject{Name: object}), len(objects)
	}
	objects[i].Functions = append(objects[i].Functions, fn)
	return objects
}

// klpBuildObjects reads klp-build's (Linux 6.19) object table, an array of {name,
// funcs, callbacks[4], nr_funcs}; its functions are {old_name, new_func, sympos}:
// include/linux/livepatch_external.h.
func (f *File) klpBuildObjects(s *Section) []PatchObject {
	const funcSize = 24
	p := f.pointers(s)
	var objects []PatchObject
	n := 0
	for _, o := range sortedKeys(p) {
		funcs := p[o]
		if funcs.sec == nil || funcs.sec.Exec() || o < 8 {
			continue
		}
		fp := f.pointers(funcs.sec)
		if !isFunc(fp, funcs.off) {
			continue
		}
		object := "vmlinux"
		if name, ok := p[o-8].text(); ok {
			object = name
		}
		for q := funcs.off; isFunc(fp, q) && n < maxFunctions; q += funcSize {
			name, _ := fp[q].text()
			objects = addFunction(objects, object, f.function(name, fp[q+8], f.u64(funcs.sec, q+16)))
			n++
		}
	}
	return objects
}

// isFunc tells whether a function entry, {old_name, new_func, ...}, begins at o.
func isFunc(p pointers, o uint64) bool {
	_, ok := p[o].text()
	return ok && p[o+8].code()
}

func sortedKeys(p pointers) []uint64 {
	keys := make([]uint64, 0, len(p))
	for o := range p {
		keys = append(keys, o)
	}
	slices.Sort(keys)
	return keys
}

// table is the start of one object's array of struct klp_func.
type table struct {
	object string
	sec    *Section
	off    uint64
}

// staticPatch finds the statically initialised struct klp_patch {mod, objs, ...}
// by its pointer to __this_module, then its objects {name, funcs, ...} and their
// functions {old_name, new_func, old_sympos, ...}: include/linux/livepatch.h. The
// sizes of these structures depend on the kernel's configuration, so entries are
// told by the shape of their relocations, not by stride.
func (f *File) staticPatch() (objects []PatchObject, replace bool) {
	for _, s := range f.Sections {
		if s.Exec() || s.Type != SHT_PROGBITS || s.Flags&SHF_ALLOC == 0 || len(s.Relocs) < 2 {
			continue
		}
		p := f.pointers(s)
		for _, o := range sortedKeys(p) {
			objs := p[o+8]
			if p[o].sym.Name != "__this_module" || objs.sec == nil || objs.sec.Exec() {
				continue
			}
			if objects = f.staticObjects(objs); len(objects) > 0 {
				return objects, f.replaces(s, p, o)
			}
		}
	}
	return nil, false
}

// replaces reads klp_patch.replace: after {mod, objs, states} since Linux 5.4
// (commit 92c9abf5e57500f4), after {mod, objs} in 5.1 to 5.3. What follows the flag
// in the older layout is a list head, zero in the file, so reading the newer place
// there gives false, and the older place in a newer module is the pointer states.
func (f *File) replaces(s *Section, p pointers, o uint64) bool {
	at := func(off uint64) bool { return off < uint64(len(s.Data)) && s.Data[off] == 1 }
	_, states := p[o+16]
	return at(o+24) || !states && at(o+16)
}

func (f *File) staticObjects(objs target) []PatchObject {
	p := f.pointers(objs.sec)
	var tables []table
	for _, o := range sortedKeys(p) {
		funcs := p[o]
		if o < objs.off+8 || funcs.sec == nil || funcs.sec.Exec() {
			continue
		}
		fp := p
		if funcs.sec != objs.sec {
			fp = f.pointers(funcs.sec)
		}
		if !isFunc(fp, funcs.off) {
			continue
		}
		t := table{object: "vmlinux", sec: funcs.sec, off: funcs.off}
		if name, ok := p[o-8]; ok {
			if t.object, ok = name.text(); !ok {
				continue
			}
		}
		tables = append(tables, t)
	}
	return f.staticFunctions(tables)
}

// staticFunctions lists each table's functions; a table ends where the next one in
// its section begins.
func (f *File) staticFunctions(tables []table) []PatchObject {
	var objects []PatchObject
	n := 0
	for _, t := range tables {
		end := t.sec.Size
		for _, u := range tables {
			if u.sec == t.sec && u.off > t.off {
				end = min(end, u.off)
			}
		}
		p := f.pointers(t.sec)
		keys := sortedKeys(p)
		from, _ := slices.BinarySearchFunc(keys, t.off, func(a, b uint64) int { return cmp.Compare(a, b) })
		for _, o := range keys[from:] {
			if o >= end || n >= maxFunctions {
				break
			}
			if isFunc(p, o) {
				name, _ := p[o].text()
				objects = addFunction(objects, t.object, f.function(name, p[o+8], f.u64(t.sec, o+16)))
				n++
			}
		}
	}
	return objects
}

// setsReplace tells whether the x86-64 code that fills a struct klp_patch at run
// time, as kpatch-build's and klp-build's does, stores 1 at its replace flag: the
// instruction movb $1, 24(%reg).
func (f *File) setsReplace() bool {
	if f.Machine != EM_X86_64 {
		return false
	}
	for _, s := range f.Sections {
		if !s.Exec() {
			continue
		}
		for b := s.Data; ; {
			i := bytes.IndexByte(b, 0xc6)
			if i < 0 || i+4 > len(b) {
				break
			}
			if b[i+1]&0xf8 == 0x40 && b[i+1] != 0x44 && b[i+2] == 24 && b[i+3] == 1 {
				return true
			}
			b = b[i+1:]
		}
	}
	return false
}
