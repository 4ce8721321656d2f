package elfdiff

import (
	"fmt"
	"slices"
	"strings"

	"livepatch/internal/elfobj"
)

// relocsPerRow says, of the special sections whose rows belong to the code that
// their first relocation points to, how many relocations a row may have; nil for
// other sections. A row's size is not fixed: it follows from the number of
// relocations, because it differs between kernel versions and configurations.
func relocsPerRow(section string) []int {
	switch section {
	case ".parainstructions", ".smp_locks", ".retpoline_sites", ".return_sites", ".call_sites", ".ibt_endbr_seal", "__mcount_loc", orcTable:
		return []int{1}
	case ".altinstructions", ".static_call_sites":
		return []int{2}
	case "__bug_table":
		return []int{2, 1}
	case "__ex_table":
		return []int{2, 3}
	case "__jump_table":
		return []int{3}
	}
	return nil
}

const orcTable, orcPair = ".orc_unwind_ip", ".orc_unwind"

// compared tells whether a table's rows are part of what a function does. The
// others only repeat what the code says, or where it is.
func compared(table string) bool {
	switch table {
	case ".altinstructions", "__ex_table", "__jump_table", ".parainstructions", "__bug_table":
		return true
	}
	return false
}

// special tells whether a section is a table or is left out of every livepatch.
func special(name string) bool {
	return relocsPerRow(name) != nil || name == orcPair || name == ".orc_header" || strings.HasPrefix(name, ".discard") || strings.HasPrefix(name, ".debug") ||
		strings.HasPrefix(name, "__ksymtab") || strings.HasPrefix(name, "___ksymtab") || strings.HasPrefix(name, "__kcrctab") ||
		strings.HasPrefix(name, "___kcrctab") || name == ".modinfo" || name == ".comment" || strings.HasPrefix(name, ".note")
}

func (g *Graph) addTables() error {
	for _, s := range g.file.Sections {
		want := relocsPerRow(s.Name)
		if want == nil || s.Size == 0 {
			continue
		}
		if err := g.addTable(s, want); err != nil {
			return fmt.Errorf("section %s: %w", s.Name, err)
		}
	}
	return nil
}

func (g *Graph) addTable(s *elfobj.Section, perRow []int) error {
	size, err := rowSize(s, perRow)
	if err != nil {
		return err
	}
	var pair *elfobj.Section
	var pairSize uint64
	if s.Name == orcTable {
		if pair = g.file.Section(orcPair); pair == nil || pair.Size%(s.Size/size) != 0 {
			return fmt.Errorf("does not run parallel to %s", orcPair)
		}
		pairSize = pair.Size / (s.Size / size)
	}
	relocs := slices.Clone(s.Relocs)
	slices.SortStableFunc(relocs, func(a, b elfobj.Reloc) int { return int(a.Offset) - int(b.Offset) })
	for row := uint64(0); row*size < s.Size; row++ {
		e := Entry{Table: s.Name, Data: s.Data[row*size : (row+1)*size]}
		for len(relocs) > 0 && relocs[0].Offset < (row+1)*size {
			e.Refs = append(e.Refs, g.ref(s, relocs[0], row*size))
			relocs = relocs[1:]
		}
		if len(e.Refs) == 0 {
			continue
		}
		if pair != nil {
			e.Pair = pair.Data[row*pairSize : (row+1)*pairSize]
		}
		owner := e.Refs[0].Target
		owner.Entries = append(owner.Entries, e)
		if s.Name == "__mcount_loc" && owner.Kind == Function {
			owner.Traceable = true
		}
	}
	return nil
}

// rowSize finds the size of a table's rows: the one under which every row begins
// with a relocation.
func rowSize(s *elfobj.Section, perRow []int) (uint64, error) {
	if uint64(len(s.Data)) != s.Size {
		return 0, fmt.Errorf("has no bytes")
	}
	at := map[uint64]bool{}
	for _, r := range s.Relocs {
		at[r.Offset] = true
	}
	for _, n := range perRow {
		rows := uint64(len(s.Relocs) / n)
		if rows == 0 || len(s.Relocs)%n != 0 || s.Size%rows != 0 {
			continue
		}
		size, ok := s.Size/rows, true
		for row := uint64(0); row < rows && ok; row++ {
			ok = at[row*size]
		}
		if ok {
			return size, nil
		}
	}
	return 0, fmt.Errorf("%d bytes with %d relocations are not rows of a known form", s.Size, len(s.Relocs))
}
