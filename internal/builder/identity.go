package builder

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
)

// locator finds where a rebuilt object went in the shipped one. The object is
// compiled without -ffunction-sections: the linker then placed each of its sections
// in one piece, so that one offset a section places every symbol in it.
type locator struct {
	shipped *object
	plain   *elfobj.File
	byName  map[string][]*elfobj.Symbol
	bases   map[*elfobj.Section]base
}

// base is where a section of the plain object begins in the shipped one.
type base struct {
	section *elfobj.Section // nil in vmlinux
	address uint64
}

func newLocator(shipped *object, plain *elfobj.File) *locator {
	l := &locator{shipped: shipped, plain: plain, byName: map[string][]*elfobj.Symbol{}, bases: map[*elfobj.Section]base{}}
	bySection := map[*elfobj.Section][]*elfobj.Symbol{}
	for _, s := range plain.Symbols {
		if s.Section == nil || s.Name == "" || s.Type == elfobj.STT_SECTION || s.Type == elfobj.STT_FILE || s.Section.Flags&elfobj.SHF_ALLOC == 0 {
			continue
		}
		l.byName[s.Name] = append(l.byName[s.Name], s)
		bySection[s.Section] = append(bySection[s.Section], s)
	}
	for sec, syms := range bySection {
		if b, ok := l.vote(sec, syms); ok {
			l.bases[sec] = b
		}
	}
	return l
}

// vote finds the one place under which most of a section's symbols are where the
// shipped object has symbols of their names. Where names alone leave a choice, the
// bytes decide.
func (l *locator) vote(sec *elfobj.Section, syms []*elfobj.Symbol) (base, bool) {
	votes := map[base]int{}
	for _, s := range syms {
		voted := map[base]bool{} // empty variables of one name may share an address
		for _, i := range l.shipped.byName[s.Name] {
			at := l.shipped.symbols[i]
			b := base{at.section, at.address - s.Value}
			if at.section != nil && at.section.Name != sec.Name || voted[b] {
				continue
			}
			voted[b] = true
			votes[b]++
		}
	}
	best, n := []base{}, 0
	for b, v := range votes {
		switch {
		case v > n:
			best, n = []base{b}, v
		case v == n:
			best = append(best, b)
		}
	}
	if len(best) > 1 {
		slices.SortFunc(best, func(a, b base) int { return cmp.Compare(a.address, b.address) })
		best = slices.DeleteFunc(best, func(b base) bool {
			return !l.sameBytes(sec, 0, sec.Size, l.shipped.bytes(b.section, b.address, sec.Size))
		})
	}
	if len(best) != 1 {
		return base{}, false
	}
	return best[0], true
}

// sameBytes compares a stretch of a plain section with shipped bytes. What the linker
// fills in, at either side's relocations, is left out.
func (l *locator) sameBytes(sec *elfobj.Section, from, size uint64, shipped []byte) bool {
	if uint64(len(sec.Data)) < from+size || uint64(len(shipped)) != size {
		return false
	}
	a, b := bytes.Clone(sec.Data[from:from+size]), bytes.Clone(shipped)
	for _, r := range sec.Relocs {
		width := uint64(4)
		if r.Type == elfobj.R_X86_64_64 || r.Type == elfobj.R_X86_64_PC64 {
			width = 8
		}
		for o := r.Offset; o < r.Offset+width; o++ {
			if o >= from && o-from < size {
				a[o-from], b[o-from] = 0, 0
			}
		}
	}
	return bytes.Equal(a, b)
}

// symbol finds the plain object's symbol of an item.
func (l *locator) symbol(it *elfdiff.Item) *elfobj.Symbol {
	for _, name := range append([]string{it.Name}, it.Aliases...) {
		if same := l.byName[name]; len(same) == 1 {
			return same[0]
		}
	}
	return nil
}

// locate finds the index of an item's symbol in the shipped object. The item is one
// of the original object.
func (l *locator) locate(it *elfdiff.Item) (int, error) {
	sym := l.symbol(it)
	if sym == nil {
		return 0, fmt.Errorf("%s is not once in the object", it.Name)
	}
	b, ok := l.bases[sym.Section]
	if !ok {
		return 0, fmt.Errorf("the place of %s in %s is not certain", it.Name, l.shipped.name)
	}
	for _, i := range l.shipped.byName[sym.Name] {
		if at := l.shipped.symbols[i]; at.section == b.section && at.address == b.address+sym.Value {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%s is not where %s should have it", it.Name, l.shipped.name)
}

// prove compares a rebuilt original function with the shipped one, relocations
// masked.
func (l *locator) prove(it *elfdiff.Item) error {
	i, err := l.locate(it)
	if err != nil {
		return err
	}
	sym, at := l.symbol(it), l.shipped.symbols[i]
	shipped := l.shipped.bytes(at.section, at.address, sym.Size)
	if !l.sameBytes(sym.Section, sym.Value, sym.Size, shipped) {
		return fmt.Errorf("the rebuilt %s is not the code that %s ships", it.Name, l.shipped.name)
	}
	return nil
}
