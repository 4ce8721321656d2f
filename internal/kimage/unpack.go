package kimage

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"livepatch"
)

// headSize is how much of an image's beginning tells its format: the x86 setup
// header ends below 0x300.
const headSize = 0x300

// unpack returns the ELF kernel in an image and how it was packed.
func unpack(r io.ReaderAt, size int64) ([]byte, string, error) {
	if size < headSize || size > MaxImage {
		return nil, "", livepatch.Errorf(livepatch.CodeInvalid, "the file has %d bytes, which is outside %d to %d: it is no kernel image", size, headSize, MaxImage)
	}
	head, err := readAt(r, 0, headSize)
	if err != nil {
		return nil, "", err
	}
	switch p, ok := findPayload(head, size); {
	case string(head[:4]) == elfMagic:
		b, err := readAt(r, 0, size)
		return b, "ELF", err
	case ok && (p.size < 8 || p.offset+p.size > size):
		return nil, "", livepatch.Errorf(livepatch.CodeInvalid, "the image is cut off: its %s payload ends at byte %d of %d", p.format, p.offset+p.size, size)
	case ok:
		packed, err := readAt(r, p.offset, p.size)
		if err != nil {
			return nil, "", err
		}
		return p.unpack(packed)
	case string(head[0x38:0x3c]) == "ARM\x64":
		return nil, "", livepatch.Errorf(livepatch.CodeUnsupported, "the image is a flat arm64 one, which names no build id in a place that can be told: give the vmlinux of the debug package, or the build id itself")
	}
	p := payload{format: "compressed", size: size}
	packed, err := readAt(r, 0, size)
	if err != nil {
		return nil, "", err
	}
	return p.unpack(packed)
}

// payload is the packed kernel in an image.
type payload struct {
	format       string
	offset, size int64
	// sized tells that the unpacked size follows a payload that is not gzip,
	// four bytes, little-endian, counted in size (scripts/Makefile.lib,
	// size_append).
	sized bool
}

// findPayload reads where an x86 or EFI zboot image keeps its payload. ok is false
// for anything else.
func findPayload(head []byte, size int64) (p payload, ok bool) {
	le := binary.LittleEndian
	switch {
	// Documentation/arch/x86/boot.rst: magic at 0x202, protocol 2.08 and later
	// have payload_offset and payload_length, counted from the protected-mode
	// code behind the setup sectors.
	case le.Uint16(head[0x1fe:]) == 0xaa55 && string(head[0x202:0x206]) == "HdrS" && le.Uint16(head[0x206:]) >= 0x0208:
		sectors := int64(head[0x1f1])
		if sectors == 0 {
			sectors = 4 // "for backwards compatibility"
		}
		return payload{
			format: "bzImage", sized: true,
			offset: (sectors+1)*512 + int64(le.Uint32(head[0x248:])),
			size:   int64(le.Uint32(head[0x24c:])),
		}, true
	// drivers/firmware/efi/libstub/zboot-header.S.
	case string(head[:8]) == "MZ\x00\x00zimg":
		return payload{
			format: "zboot", sized: true,
			offset: int64(le.Uint32(head[8:])),
			size:   int64(le.Uint32(head[12:])),
		}, true
	}
	return payload{}, false
}

// compressions are those that kernels are packed in, by the magic their streams
// begin with (lib/decompress.c).
var compressions = []struct{ name, magic string }{
	{"gzip", "\x1f\x8b"},
	{"xz", "\xfd7zXZ\x00"},
	{"bzip2", "BZh"},
	{"lzma", "\x5d\x00\x00"},
	{"lz4", "\x02\x21\x4c\x18"},
	{"zstd", "\x28\xb5\x2f\xfd"},
}

// unpack decompresses the payload. Of what comes out nothing beyond MaxVMLinux is
// kept.
func (p payload) unpack(packed []byte) ([]byte, string, error) {
	name := ""
	for _, c := range compressions {
		if bytes.HasPrefix(packed, []byte(c.magic)) {
			name = c.name
		}
	}
	if name == "" {
		return nil, "", livepatch.Errorf(livepatch.CodeInvalid, "the file is no kernel image that can be read (bzImage, EFI zboot, vmlinux, or a compressed vmlinux)")
	}
	limit, exact := int64(MaxVMLinux), p.sized && name != "gzip"
	if exact {
		end := len(packed) - 4
		limit = int64(binary.LittleEndian.Uint32(packed[end:]))
		packed = packed[:end]
	}
	if limit > MaxVMLinux {
		return nil, "", livepatch.Errorf(livepatch.CodeInvalid, "the image claims to unpack to %d bytes, more than %d", limit, MaxVMLinux)
	}
	vmlinux, err := decompress(name, packed, limit)
	if err == nil && exact && int64(len(vmlinux)) < limit {
		err = fmt.Errorf("%d bytes instead of %d", len(vmlinux), limit)
	}
	if err != nil {
		return nil, "", livepatch.Errorf(livepatch.CodeInvalid, "the kernel image is damaged: its %s payload does not unpack: %w", name, err)
	}
	return vmlinux, fmt.Sprintf("%s (%s)", p.format, name), nil
}

// decompress unpacks at most limit bytes; a stream that has more is an error.
func decompress(name string, packed []byte, limit int64) ([]byte, error) {
	if name == "xz" {
		return decompressXZ(packed, limit)
	}
	in, err := open(name, packed)
	if err != nil {
		return nil, err
	}
	if c, ok := in.(io.Closer); ok {
		defer c.Close()
	}
	return readAll(in, limit)
}

func readAll(in io.Reader, limit int64) ([]byte, error) {
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(in, limit+1))
	switch {
	case err != nil:
		return nil, err
	case n > limit:
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return out.Bytes(), nil
}

// maxWindow bounds the memory a stream may ask for, in bytes. Kernels are packed
// with xz at 32 MB (scripts/xz_wrap.sh) and zstd -22 --ultra at 128 MB.
const maxWindow = 128 << 20

func open(name string, packed []byte) (io.Reader, error) {
	r := bytes.NewReader(packed)
	switch name {
	case "gzip":
		return gzip.NewReader(r)
	case "bzip2":
		return bzip2.NewReader(r), nil
	case "lzma":
		// Properties, then the dictionary's size, which is allocated.
		if len(packed) < lzma.HeaderLen || binary.LittleEndian.Uint32(packed[1:]) > maxWindow {
			return nil, errors.New("its lzma dictionary is too large")
		}
		return lzma.NewReader(r)
	case "lz4":
		return lz4.NewReader(r), nil
	}
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}
