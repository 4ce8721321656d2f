package elfobj

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"strings"
)

// Layout is how a structure or union lies in memory: its size in bytes, and the
// offset of each member.
type Layout struct {
	Size    int64
	Members []Member
}

// Member is one member of a structure.
type Member struct {
	Name string
	// Offset in bytes; Bits is the offset in bits of a bit field, else 0.
	Offset, Bits int64
}

func (l Layout) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", l.Size)
	for _, m := range l.Members {
		fmt.Fprintf(&b, " %s@%d.%d", m.Name, m.Offset, m.Bits)
	}
	return b.String()
}

// Layouts reads the named structures and unions from an object's DWARF. Of several
// with one name the first counts. It never panics; an object without DWARF has none. It
// is for objects that we compiled ourselves: damaged debugging information may keep it
// busy for ever, and what compressed sections unpack to is not bounded.
func Layouts(b []byte) (layouts map[string]Layout, err error) {
	defer func() {
		if r := recover(); r != nil {
			layouts, err = nil, fmt.Errorf("malformed debugging information: %v", r)
		}
	}()
	if _, err := Parse(b); err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("read ELF headers: %w", err)
	}
	d, err := f.DWARF()
	if err != nil {
		return nil, fmt.Errorf("read debugging information: %w", err)
	}
	layouts = map[string]Layout{}
	r := d.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("read debugging information: %w", err)
		}
		if e == nil {
			return layouts, nil
		}
		if e.Tag != dwarf.TagStructType && e.Tag != dwarf.TagUnionType || !e.Children {
			continue
		}
		l, err := layout(r, e)
		if err != nil {
			return nil, fmt.Errorf("read debugging information: %w", err)
		}
		name, _ := e.Val(dwarf.AttrName).(string)
		if _, known := layouts[name]; name != "" && !known {
			layouts[name] = l
		}
	}
}

// layout reads the members that follow the entry of a structure.
func layout(r *dwarf.Reader, e *dwarf.Entry) (Layout, error) {
	size, _ := e.Val(dwarf.AttrByteSize).(int64)
	l := Layout{Size: size}
	for {
		m, err := r.Next()
		if err != nil || m == nil || m.Tag == 0 {
			return l, err
		}
		if m.Tag != dwarf.TagMember {
			if m.Children {
				r.SkipChildren()
			}
			continue
		}
		name, _ := m.Val(dwarf.AttrName).(string)
		off, _ := m.Val(dwarf.AttrDataMemberLoc).(int64)
		bits, _ := m.Val(dwarf.AttrDataBitOffset).(int64)
		l.Members = append(l.Members, Member{name, off, bits})
	}
}
