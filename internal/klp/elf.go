package klp

import (
	"bytes"
	"encoding/binary"

	"livepatch/internal/elfobj"
)

// header is a section header; its offset and name index follow when it is written.
type header struct {
	name       string
	typ        elfobj.SectionType
	flags      elfobj.SectionFlag
	size       uint64
	link, info uint32
	align, ent uint64
	offset     uint64
}

// writer lays sections one behind the other after the ELF header.
type writer struct {
	body     bytes.Buffer
	headers  []header
	names    *stringTable
	symNames *stringTable
}

const elfHeaderSize = 64

func (w *writer) add(h header, data []byte) {
	if h.typ != elfobj.SHT_NULL {
		for align := max(h.align, 1); (elfHeaderSize+uint64(w.body.Len()))%align != 0; {
			w.body.WriteByte(0)
		}
		h.offset = elfHeaderSize + uint64(w.body.Len())
		if h.typ != elfobj.SHT_NOBITS {
			h.size = uint64(len(data))
			w.body.Write(data)
		}
	}
	w.headers = append(w.headers, h)
}

// finish appends the section names and headers and puts the ELF header in front.
func (w *writer) finish() []byte {
	var index []uint32
	for _, h := range w.headers {
		index = append(index, w.names.add(h.name))
	}
	index = append(index, w.names.add(".shstrtab"))
	w.add(header{name: ".shstrtab", typ: elfobj.SHT_STRTAB, align: 1}, w.names.data)
	for (elfHeaderSize+w.body.Len())%8 != 0 {
		w.body.WriteByte(0)
	}
	le := binary.LittleEndian
	out := make([]byte, elfHeaderSize, elfHeaderSize+w.body.Len()+64*len(w.headers))
	copy(out, "\x7fELF\x02\x01\x01") // 64 bits, little endian, version 1
	le.PutUint16(out[16:], 1)        // ET_REL
	le.PutUint16(out[18:], uint16(elfobj.EM_X86_64))
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[40:], elfHeaderSize+uint64(w.body.Len()))
	le.PutUint16(out[52:], elfHeaderSize)
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], uint16(len(w.headers)))
	le.PutUint16(out[62:], uint16(len(w.headers)-1))
	out = append(out, w.body.Bytes()...)
	for i, h := range w.headers {
		var e [64]byte
		le.PutUint32(e[0:], index[i])
		le.PutUint32(e[4:], uint32(h.typ))
		le.PutUint64(e[8:], uint64(h.flags))
		le.PutUint64(e[24:], h.offset)
		le.PutUint64(e[32:], h.size)
		le.PutUint32(e[40:], h.link)
		le.PutUint32(e[44:], h.info)
		le.PutUint64(e[48:], h.align)
		le.PutUint64(e[56:], h.ent)
		out = append(out, e[:]...)
	}
	return out
}

// stringTable is an ELF string table; equal names share an entry.
type stringTable struct {
	data  []byte
	index map[string]uint32
}

func newStrings() *stringTable {
	return &stringTable{data: []byte{0}, index: map[string]uint32{"": 0}}
}

func (t *stringTable) add(s string) uint32 {
	i, ok := t.index[s]
	if !ok {
		i = uint32(len(t.data))
		t.index[s] = i
		t.data = append(append(t.data, s...), 0)
	}
	return i
}
