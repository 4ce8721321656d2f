package kimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

const textAddr = 0xffffffff81000000

// manySymbols is a table as a kernel has it: absolute per-cpu symbols first, then
// code in order of address, one name twice, one too long for a one-byte length.
func manySymbols() []Symbol {
	syms := []Symbol{{"fixed_percpu_data", 'A', 0}, {"current_task", 'A', 0x1fb80}, {"_stext", 'T', textAddr}}
	for i := range 1500 {
		syms = append(syms, Symbol{fmt.Sprintf("function_%d", i), 't', textAddr + uint64(i)*32 + 64})
	}
	long := make([]byte, 200)
	for i := range long {
		long[i] = 'l'
	}
	return append(syms, Symbol{"twice", 't', textAddr + 0x100000}, Symbol{"twice", 'd', textAddr + 0x200000}, Symbol{string(long), 'D', textAddr + 0x200040})
}

// rodata writes the table with every token standing for its own character. Until
// Linux 6.3 the offsets stand before the names, since 6.4 behind.
func rodata(syms []Symbol, offsetsLast bool) []byte {
	le := binary.LittleEndian
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) }
	var offsets, names, markers, tokens, index []byte
	for i, s := range syms {
		o := int32(s.Address)
		if s.Type != 'A' {
			o = int32(uint64(textAddr) - 1 - s.Address)
		}
		offsets = le.AppendUint32(offsets, uint32(o))
		if i%256 == 0 {
			markers = le.AppendUint32(markers, uint32(len(names)))
		}
		n := len(s.Name) + 1
		if n < 128 {
			names = append(names, byte(n))
		} else {
			names = append(names, byte(n&0x7f|0x80), byte(n>>7))
		}
		names = append(append(names, s.Type), s.Name...)
	}
	for c := range 256 {
		index = le.AppendUint16(index, uint16(len(tokens)))
		if c >= ' ' && c <= '~' {
			tokens = append(tokens, byte(c), 0)
		} else {
			tokens = append(tokens, 'a', 'b', 0) // unused ones
		}
	}
	addresses := le.AppendUint64(pad(offsets), textAddr)
	b := make([]byte, 4096) // something before it
	if !offsetsLast {
		b = append(b, addresses...)
	}
	b = le.AppendUint64(b, uint64(len(syms)))
	b = pad(append(b, names...))
	b = pad(append(b, markers...))
	b = pad(append(b, tokens...))
	b = pad(append(b, index...))
	if offsetsLast {
		b = append(b, addresses...)
	}
	return append(b, make([]byte, 64)...)
}

// linked is an ELF file with .text and .rodata.
func linked(rodata []byte) []byte {
	le := binary.LittleEndian
	names := []byte("\x00.text\x00.rodata\x00.shstrtab\x00")
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // ET_EXEC
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 4)
	le.PutUint16(b[62:], 3)
	header := func(name, typ uint32, flags, addr, off, size uint64) []byte {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], typ)
		le.PutUint64(h[8:], flags)
		le.PutUint64(h[16:], addr)
		le.PutUint64(h[24:], off)
		le.PutUint64(h[32:], size)
		return h
	}
	at := uint64(len(b))
	b = append(append(b, rodata...), names...)
	le.PutUint64(b[40:], uint64(len(b)))
	size := uint64(len(rodata))
	b = append(b, header(0, 0, 0, 0, 0, 0)...)
	b = append(b, header(1, 1, 6, textAddr, at, 16)...)
	b = append(b, header(7, 1, 2, textAddr+0x1000000, at, size)...)
	return append(b, header(15, 3, 0, 0, at+size, uint64(len(names)))...)
}

func TestKallsymsReadsBothLayouts(t *testing.T) {
	t.Parallel()
	want := manySymbols()
	for _, offsetsLast := range []bool{false, true} {
		got, err := Kallsyms(linked(rodata(want, offsetsLast)))
		if err != nil {
			t.Errorf("offsets last %v: %v", offsetsLast, err)
			continue
		}
		if len(got) != len(want) {
			t.Fatalf("offsets last %v: %d symbols, want %d", offsetsLast, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("offsets last %v: symbol %d is %+v, want %+v", offsetsLast, i, got[i], want[i])
			}
		}
	}
}

func TestKallsymsOfImageWithoutTable(t *testing.T) {
	t.Parallel()
	if _, err := Kallsyms(linked(make([]byte, 100_000))); !errors.Is(err, ErrNoKallsyms) {
		t.Errorf("error %v, want ErrNoKallsyms", err)
	}
}

// Whatever the bytes are: symbols or an error, and no more symbols than bytes.
func FuzzKallsyms(f *testing.F) {
	f.Add(linked(rodata(manySymbols(), false)))
	f.Add(linked(rodata(manySymbols(), true)))
	f.Fuzz(func(t *testing.T, b []byte) {
		syms, err := Kallsyms(b)
		if err == nil && (len(syms) < minSymbols || len(syms) > len(b)) {
			t.Errorf("%d symbols out of %d bytes", len(syms), len(b))
		}
	})
}
