package kimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"

	"github.com/ulikunitz/xz/lzma"
)

// The parts of the .xz format (tukaani.org/xz/xz-file-format.txt, version 1.2.1)
// that kernels are packed with: scripts/xz_wrap.sh makes one block with CRC32 and,
// for x86, a filter that turns the targets of calls into absolute addresses before
// LZMA2. The general xz reader does not know that filter.
const (
	xzStreamHeader = 12
	xzCheckCRC32   = 1
	xzFilterX86    = 0x04
	xzFilterLZMA2  = 0x21
)

var errXZ = errors.New("not an xz stream as kernels are packed")

// xzBlock is what the header of a stream's first block says.
type xzBlock struct {
	x86 bool
	// dict is LZMA2's dictionary size in bytes.
	dict uint64
	// data is where the block's data begins in the stream.
	data int
}

// parseXZ reads stream and block header.
func parseXZ(stream []byte) (xzBlock, error) {
	if len(stream) < xzStreamHeader+8 || stream[6] != 0 || stream[7] != xzCheckCRC32 ||
		crc32.ChecksumIEEE(stream[6:8]) != binary.LittleEndian.Uint32(stream[8:]) {
		return xzBlock{}, errXZ
	}
	size := (int(stream[xzStreamHeader]) + 1) * 4
	if size < 8 || xzStreamHeader+size > len(stream) {
		return xzBlock{}, errXZ
	}
	header := stream[xzStreamHeader : xzStreamHeader+size]
	body, sum := header[:size-4], binary.LittleEndian.Uint32(header[size-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return xzBlock{}, errors.New("xz block header has a wrong checksum")
	}
	block := xzBlock{data: xzStreamHeader + size}
	flags, in := body[1], bytes.NewReader(body[2:])
	for _, present := range []byte{0x40, 0x80} { // compressed, uncompressed size
		if flags&present != 0 {
			if _, err := binary.ReadUvarint(in); err != nil {
				return xzBlock{}, errXZ
			}
		}
	}
	return block, block.readFilters(in, int(flags&3)+1)
}

// readFilters accepts LZMA2, alone or behind the x86 filter.
func (b *xzBlock) readFilters(in *bytes.Reader, count int) error {
	for ; count > 0; count-- {
		id, err1 := binary.ReadUvarint(in)
		size, err2 := binary.ReadUvarint(in)
		if err1 != nil || err2 != nil || size > uint64(in.Len()) {
			return errXZ
		}
		properties := make([]byte, size)
		if _, err := io.ReadFull(in, properties); err != nil {
			return errXZ
		}
		switch {
		case id == xzFilterX86 && count == 2 && size == 0:
			b.x86 = true
		case id == xzFilterLZMA2 && count == 1 && size == 1 && properties[0] < 40:
			// Mantissa and exponent, section 5.3.1.
			b.dict = (2 | uint64(properties[0]&1)) << (properties[0]/2 + 11)
		default:
			return fmt.Errorf("xz filter %#x is not supported", id)
		}
	}
	return nil
}

// decompressXZ unpacks the first block of a stream and checks it.
func decompressXZ(stream []byte, limit int64) ([]byte, error) {
	block, err := parseXZ(stream)
	switch {
	case err != nil:
		return nil, err
	case block.dict > maxWindow:
		return nil, fmt.Errorf("it wants a dictionary of %d bytes", block.dict)
	}
	in := bytes.NewReader(stream[block.data:])
	r, err := lzma.Reader2Config{DictCap: int(max(block.dict, lzma.MinDictCap))}.NewReader2(in)
	if err != nil {
		return nil, err
	}
	out, err := readAll(r, limit)
	if err != nil {
		return nil, err
	}
	if block.x86 {
		undoX86(out)
	}
	// Padding to four bytes, then the check.
	end := block.data + (int(in.Size())-in.Len()+3)&^3
	if end+4 > len(stream) || binary.LittleEndian.Uint32(stream[end:]) != crc32.ChecksumIEEE(out) {
		return nil, errors.New("xz block has a wrong checksum")
	}
	return out, nil
}

// undoX86 takes xz's x86 filter back, in place: behind each CALL (E8) and JMP (E9)
// it makes the absolute target a relative one again.
//
// The filter guesses what is an instruction. An operand counts when its highest
// byte is 00 or FF, as those of near targets are. Opcode bytes that were passed
// over shortly before make the guess doubtful, because this one may lie in their
// operand; undone must be exactly what was done, doubt included.
func undoX86(b []byte) {
	last := -1
	// doubt has bit n set when the byte n+1 before this one is an opcode that
	// was passed over.
	var doubt uint
	for i := 0; i+5 <= len(b); i++ {
		if b[i]&0xfe != 0xe8 {
			continue
		}
		if distance := i - last; distance > 3 {
			doubt = 0
		} else {
			doubt = doubt << (distance - 1) & 7
		}
		last = i
		doubtful := doubt != 0 && (bits.OnesCount(doubt) > 1 || signByte(b[i+4-bits.Len(doubt)]))
		if doubtful || !signByte(b[i+4]) {
			doubt = doubt<<1 | 1
			continue
		}
		operand := b[i+1 : i+5]
		binary.LittleEndian.PutUint32(operand, relative(binary.LittleEndian.Uint32(operand), uint32(i+5), bits.Len(doubt)))
		i += 4
	}
}

// relative is the operand that the filter made the target of, at the instruction
// that ends at next. Where a doubtful opcode lies overlap bytes before this one,
// the filter went on until the byte they share was no sign.
func relative(target, next uint32, overlap int) uint32 {
	operand := target - next
	for shift := 8 * overlap; overlap > 0 && signByte(byte(operand>>(24-shift))); {
		operand = (operand ^ (1<<(32-shift) - 1)) - next
	}
	// 25 bits and their sign.
	operand &= 1<<25 - 1
	return operand | -(operand & (1 << 24))
}

// signByte tells bytes that extend a sign.
func signByte(b byte) bool { return b == 0 || b == 0xff }
