package kimage

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strings"

	"livepatch"
)

// Bounds, in bytes. Distribution kernels are 6 to 20 MB packed and 40 to 100 MB
// unpacked; one with debug information reaches a few hundred.
const (
	MaxImage   = 1 << 30
	MaxVMLinux = 1 << 30
)

// Image is a kernel image, unpacked.
type Image struct {
	// Format is how the image was packed: "bzImage", "zboot", "ELF" or
	// "compressed", and in which compression, such as "bzImage (lz4)".
	Format string
	// Release is what uname -r will say, Version what uname -v will.
	Release, Version string
	// BuildID is the GNU build id, lower-case hex.
	BuildID string
	// VMLinux is the kernel as an ELF file, without its symbol table; on x86 its
	// relocations follow it.
	VMLinux []byte
}

// Read unpacks an image of size bytes and reads what it says of itself. The error
// has CodeInvalid when it is no kernel image, CodeUnsupported when it is one of a
// kind that cannot be read.
func Read(r io.ReaderAt, size int64) (*Image, error) {
	vmlinux, format, err := unpack(r, size)
	if err != nil {
		return nil, err
	}
	img := &Image{Format: format, VMLinux: vmlinux}
	if img.BuildID, err = buildID(vmlinux); err != nil {
		return nil, err
	}
	img.Release, img.Version = banner(vmlinux)
	if img.Release == "" {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the image holds no Linux kernel: it has no version banner")
	}
	return img, nil
}

// Payload unpacks an image and returns the vmlinux in it, an ELF file of at most
// MaxVMLinux bytes. Errors as with Read.
func Payload(r io.ReaderAt, size int64) ([]byte, error) {
	vmlinux, _, err := unpack(r, size)
	return vmlinux, err
}

// BuildID returns the GNU build id of the kernel in an image: what the kernel,
// once running, says in /sys/kernel/notes. Errors as with Read.
func BuildID(r io.ReaderAt, size int64) (string, error) {
	vmlinux, err := Payload(r, size)
	if err != nil {
		return "", err
	}
	return buildID(vmlinux)
}

// bannerRE matches linux_banner (init/version.c): "Linux version RELEASE (by@host)
// (compiler) #1 SMP ... date". Its length is bounded by what the compile command
// may be. The first banner in a kernel of Linux 6.2 and later, and of distributions
// that took the change, is a placeholder without the build's number.
var bannerRE = regexp.MustCompile(`Linux version ([0-9][A-Za-z0-9.+~_-]{0,63}) \([ -~]{1,512}?\) (#[0-9][ -~]{0,255})\n`)

// banner finds release and version in a kernel.
func banner(vmlinux []byte) (release, version string) {
	mark := []byte("Linux version ")
	for rest := vmlinux; ; rest = rest[len(mark):] {
		i := bytes.Index(rest, mark)
		if i < 0 {
			return "", ""
		}
		rest = rest[i:]
		m := bannerRE.FindSubmatchIndex(rest[:min(len(rest), 1024)])
		if m != nil && m[0] == 0 {
			return string(rest[m[2]:m[3]]), strings.TrimSpace(string(rest[m[4]:m[5]]))
		}
	}
}

// The parts of an ELF header that lead to the notes (System V gABI, "ELF Header"
// and "Program Header").
const (
	elfMagic     = "\x7fELF"
	ptNote       = 4
	maxNotes     = 1 << 20
	headerSize64 = 64
	progSize64   = 56
)

// buildID reads the build id from the note segments of a 64-bit kernel.
func buildID(elf []byte) (string, error) {
	if len(elf) < headerSize64 || string(elf[:4]) != elfMagic {
		return "", livepatch.Errorf(livepatch.CodeInvalid, "the image holds no ELF kernel")
	}
	order, err := byteOrder(elf)
	if err != nil {
		return "", err
	}
	offset, count := order.Uint64(elf[32:]), uint64(order.Uint16(elf[56:]))
	if order.Uint16(elf[54:]) != progSize64 || !within(elf, offset, count*progSize64) {
		return "", livepatch.Errorf(livepatch.CodeInvalid, "the kernel in the image is cut off or damaged: its program headers lie outside")
	}
	for ; count > 0; count, offset = count-1, offset+progSize64 {
		h := elf[offset : offset+progSize64]
		at, size := order.Uint64(h[8:]), order.Uint64(h[32:])
		if order.Uint32(h) != ptNote || size > maxNotes || !within(elf, at, size) {
			continue
		}
		if id, ok := livepatch.BuildIDFromNotes(elf[at:at+size], order); ok {
			return id, nil
		}
	}
	return "", livepatch.Errorf(livepatch.CodeUnsupported, "the kernel in the image has no build id: it was linked without --build-id")
}

// byteOrder is that of a 64-bit ELF file.
func byteOrder(elf []byte) (binary.ByteOrder, error) {
	const class64, little, big = 2, 1, 2
	switch {
	case elf[4] != class64:
		return nil, livepatch.Errorf(livepatch.CodeUnsupported, "the kernel in the image is not a 64-bit one")
	case elf[5] == little:
		return binary.LittleEndian, nil
	case elf[5] == big:
		return binary.BigEndian, nil
	}
	return nil, livepatch.Errorf(livepatch.CodeInvalid, "the kernel in the image is damaged: its byte order is unknown")
}

// within tells whether b has size bytes at offset.
func within(b []byte, offset, size uint64) bool {
	return offset <= uint64(len(b)) && size <= uint64(len(b))-offset
}

// readAt reads size bytes at offset, which the caller has bounded.
func readAt(r io.ReaderAt, offset, size int64) ([]byte, error) {
	b := make([]byte, size)
	if _, err := r.ReadAt(b, offset); err != nil {
		return nil, fmt.Errorf("read kernel image: %w", err)
	}
	return b, nil
}
