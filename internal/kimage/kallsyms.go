package kimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"livepatch/internal/elfobj"
)

// Symbol is one entry of the kernel's own symbol table.
type Symbol struct {
	Name string
	// Type is nm's letter: t and T for code, upper case for global ones.
	Type    byte
	Address uint64
}

// ErrNoKallsyms means that no symbol table was found in the image: the kernel is
// built without CONFIG_KALLSYMS or in a way this reader does not know.
var ErrNoKallsyms = errors.New("no kallsyms table in the kernel image")

// Kallsyms reads the symbol table that a linked kernel (what Payload returns)
// carries for itself, in the table's own order: the order in which the livepatch
// core counts positions of equal names.
//
// The table has no header. Its parts are found by their shape (scripts/kallsyms.c):
// a count, as many length-prefixed names of token indexes, a marker every 256
// names, 256 tokens with an index, and one 32-bit offset a symbol, which stood
// before the count until Linux 6.3 and stands after the token index since.
func Kallsyms(vmlinux []byte) ([]Symbol, error) {
	f, err := elfobj.Parse(vmlinux)
	if err != nil {
		return nil, fmt.Errorf("read kernel image: %w", err)
	}
	text := f.Section(".text")
	if text == nil {
		return nil, ErrNoKallsyms
	}
	for _, s := range f.Sections {
		if s.Type != elfobj.SHT_PROGBITS || s.Flags&elfobj.SHF_ALLOC == 0 || s.Exec() {
			continue
		}
		k := kallsyms{data: s.Data, order: f.Order, text: text.Addr}
		if syms := k.find(); syms != nil {
			return syms, nil
		}
	}
	return nil, ErrNoKallsyms
}

// kallsyms searches one section.
type kallsyms struct {
	data  []byte
	order binary.ByteOrder
	text  uint64
}

// Plausible numbers of symbols; a distribution's kernel has 100,000 to 300,000.
const minSymbols, maxSymbols = 1000, 4 << 20

func (k *kallsyms) u32(off int) (uint32, bool) {
	if off < 0 || off > len(k.data)-4 {
		return 0, false
	}
	return k.order.Uint32(k.data[off:]), true
}

func align8(n int) int { return (n + 7) &^ 7 }

func (k *kallsyms) find() []Symbol {
	for p := 0; p+16 < len(k.data); p += 8 {
		n, _ := k.u32(p)
		pad, _ := k.u32(p + 4)
		if n < minSymbols || n > maxSymbols || pad != 0 {
			continue
		}
		names, end, ok := k.names(p+8, int(n))
		if !ok {
			continue
		}
		tokens, after, ok := k.tokens(end)
		if !ok {
			continue
		}
		if syms := k.symbols(names, tokens); syms != nil && k.addresses(syms, p, after) {
			return syms
		}
	}
	return nil
}

// names splits n compressed names beginning at off and checks them against the
// markers behind them. A length of 128 and more takes two bytes (Linux 6.1).
func (k *kallsyms) names(off, n int) (names [][]byte, end int, ok bool) {
	start := off
	var marks []uint32
	for i := range n {
		if i%256 == 0 {
			marks = append(marks, uint32(off-start))
		}
		if off+2 > len(k.data) {
			return nil, 0, false
		}
		size := int(k.data[off])
		off++
		if size&0x80 != 0 {
			size = size&0x7f | int(k.data[off])<<7
			off++
		}
		if size == 0 || size > 1024 || off+size > len(k.data) {
			return nil, 0, false
		}
		names = append(names, k.data[off:off+size])
		off += size
	}
	end = align8(off)
	for i, m := range marks {
		if got, ok := k.u32(end + 4*i); !ok || got != m {
			return nil, 0, false
		}
	}
	return names, end + 4*len(marks), true
}

// tokens finds the token table at or after off, by the digits, which stand for
// themselves, and checks it against its index.
func (k *kallsyms) tokens(off int) (tokens []string, after int, ok bool) {
	digits := []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
	for from := off; from < len(k.data); {
		i := bytes.Index(k.data[from:], digits)
		if i < 0 {
			return nil, 0, false
		}
		start := from + i
		for range '0' { // step back over the tokens before "0"
			start = bytes.LastIndexByte(k.data[off:max(start-1, off)], 0) + off + 1
		}
		for s := start; s > start-8 && s >= off; s-- { // an empty first token looks like padding
			if tokens, after, ok = k.tokenTable(s); ok {
				return tokens, after, true
			}
		}
		from += i + 1
	}
	return nil, 0, false
}

func (k *kallsyms) tokenTable(start int) (tokens []string, after int, ok bool) {
	off := start
	var index []uint16
	for range 256 {
		end := bytes.IndexByte(k.data[off:], 0)
		if end < 0 || end > 64 {
			return nil, 0, false
		}
		index = append(index, uint16(off-start))
		tokens = append(tokens, string(k.data[off:off+end]))
		off += end + 1
	}
	off = align8(off)
	for i, want := range index {
		if o := off + 2*i; o+2 > len(k.data) || k.order.Uint16(k.data[o:]) != want {
			return nil, 0, false
		}
	}
	return tokens, align8(off + 512), true
}

func (k *kallsyms) symbols(names [][]byte, tokens []string) []Symbol {
	syms := make([]Symbol, 0, len(names))
	var buf []byte
	for _, name := range names {
		buf = buf[:0]
		for _, c := range name {
			buf = append(buf, tokens[c]...)
		}
		if len(buf) < 2 {
			return nil
		}
		syms = append(syms, Symbol{Type: buf[0], Name: string(buf[1:])})
	}
	return syms
}

// addresses fills in the addresses from the offsets before the count at p or after
// the token index. Right is the reading under which _stext or _text is where the
// image has its code.
func (k *kallsyms) addresses(syms []Symbol, p, after int) bool {
	size := align8(4 * len(syms))
	places := []struct{ offsets, base int }{{p - 8 - size, p - 8}, {after, after + size}}
	for _, at := range places {
		if at.offsets < 0 || at.base < 0 || at.base+8 > len(k.data) {
			continue
		}
		base := k.order.Uint64(k.data[at.base:])
		for _, percpu := range []bool{true, false} {
			if k.decode(syms, at.offsets, base, percpu) {
				return true
			}
		}
	}
	return false
}

// decode reads the offsets relative to base. With percpu
// (CONFIG_KALLSYMS_ABSOLUTE_PERCPU) a positive offset is an absolute address and a
// negative one counts from base - 1 downwards.
func (k *kallsyms) decode(syms []Symbol, off int, base uint64, percpu bool) bool {
	found := false
	for i := range syms {
		o, ok := k.u32(off + 4*i)
		switch {
		case !ok:
			return false
		case !percpu:
			syms[i].Address = base + uint64(o)
		case int32(o) >= 0:
			syms[i].Address = uint64(o)
		default:
			syms[i].Address = base - 1 - uint64(int64(int32(o)))
		}
		if n := syms[i].Name; (n == "_stext" || n == "_text") && syms[i].Address == k.text {
			found = true
		}
	}
	return found
}
