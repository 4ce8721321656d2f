package kimage_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"livepatch"
	"livepatch/internal/kimage"
)

const (
	buildID = "4f61d8f6405b1c6eed15a7a3e2e27067394202d3"
	release = "6.1.0-47-cloud-amd64"
	version = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)"
)

// vmlinux is a small ELF file with what a kernel has: a note segment with two
// notes, and the banners.
func vmlinux(order binary.AppendByteOrder) []byte {
	id, _ := hex.DecodeString(buildID)
	var notes []byte
	for _, n := range []struct {
		owner string
		kind  uint32
		desc  []byte
	}{{"Xen\x00", 6, []byte("linux\x00\x00\x00")}, {"GNU\x00", 3, id}} {
		notes = order.AppendUint32(notes, uint32(len(n.owner)))
		notes = order.AppendUint32(notes, uint32(len(n.desc)))
		notes = order.AppendUint32(notes, n.kind)
		notes = append(append(notes, n.owner...), n.desc...)
	}
	const headers = 64 + 2*56

	b := append([]byte("\x7fELF\x02"), 1, 1, 0)
	if order.String() == binary.BigEndian.String() {
		b[5] = 2
	}
	b = append(b, make([]byte, 8)...)
	b = order.AppendUint16(b, 2)      // e_type: ET_EXEC
	b = order.AppendUint16(b, 62)     // e_machine
	b = order.AppendUint32(b, 1)      // e_version
	b = order.AppendUint64(b, 0)      // e_entry
	b = order.AppendUint64(b, 64)     // e_phoff
	b = order.AppendUint64(b, 0)      // e_shoff
	b = order.AppendUint32(b, 0)      // e_flags
	b = order.AppendUint16(b, 64)     // e_ehsize
	b = order.AppendUint16(b, 56)     // e_phentsize
	b = order.AppendUint16(b, 2)      // e_phnum
	b = append(b, make([]byte, 6)...) // e_shentsize, e_shnum, e_shstrndx
	segment := func(kind uint32, offset, size uint64) {
		b = order.AppendUint32(b, kind)
		b = order.AppendUint32(b, 4)
		b = order.AppendUint64(b, offset)
		b = append(b, make([]byte, 16)...)
		b = order.AppendUint64(b, size)
		b = append(b, make([]byte, 16)...)
	}
	segment(1, 0, headers)
	segment(4, headers, uint64(len(notes)))
	b = append(b, notes...)

	banner := "Linux version " + release + " (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0, GNU ld 2.40) "
	b = append(b, "%s version %s (x) (y) %s\n\x00Linux version is not this\x00"...)
	b = append(b, banner+"# SMP PREEMPT_DYNAMIC Debian\n\x00"...)
	b = append(b, banner+version+"\n\x00"...)
	return append(b, bytes.Repeat([]byte("text of a kernel "), 400)...)
}

// pack compresses as the kernel's build does.
func pack(t *testing.T, compression string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch compression {
	case "gzip":
		w = gzip.NewWriter(&out)
	case "xz":
		w, err = xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(&out)
	case "lzma":
		w, err = lzma.NewWriter(&out)
	case "lz4":
		z := lz4.NewWriter(&out)
		err = z.Apply(lz4.LegacyOption(true))
		w = z
	case "zstd":
		w, err = zstd.NewWriter(&out)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bzImage wraps a payload as x86 does: a setup header, setup code, stub, payload.
func bzImage(payload []byte) []byte {
	const sectors, stub = 3, 716
	b := make([]byte, (sectors+1)*512+stub)
	b[0x1f1] = sectors
	binary.LittleEndian.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x020f)
	binary.LittleEndian.PutUint32(b[0x248:], stub)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(append(b, payload...), make([]byte, 100)...)
}

// zboot wraps a payload as the EFI stub of arm64 and others does.
func zboot(payload []byte) []byte {
	b := make([]byte, 1024)
	copy(b, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	return append(b, payload...)
}

// sized appends the unpacked size, as the kernel's build does unless it uses gzip.
func sized(packed []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(n))
}

func TestRead(t *testing.T) {
	t.Parallel()
	kernel := vmlinux(binary.LittleEndian)
	images := map[string][]byte{
		"ELF":               kernel,
		"bzImage (gzip)":    bzImage(pack(t, "gzip", kernel)),
		"compressed (gzip)": pack(t, "gzip", append(kernel, noise(4096)...)),
		"zboot (gzip)":      zboot(pack(t, "gzip", kernel)),
	}
	for _, c := range []string{"xz", "lzma", "lz4", "zstd"} {
		images["bzImage ("+c+")"] = bzImage(sized(pack(t, c, kernel), len(kernel)))
	}
	for format, image := range images {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			img, err := kimage.Read(bytes.NewReader(image), int64(len(image)))
			if err != nil {
				t.Fatal(err)
			}
			if img.Format != format || img.BuildID != buildID || img.Release != release || img.Version != version {
				t.Errorf("got %s, %s, %s, %q", img.Format, img.BuildID, img.Release, img.Version)
			}
			if !bytes.HasPrefix(img.VMLinux, kernel) {
				t.Error("the kernel did not come out whole")
			}
			id, err := kimage.BuildID(bytes.NewReader(image), int64(len(image)))
			if err != nil || id != buildID {
				t.Errorf("BuildID = %q, %v", id, err)
			}
		})
	}
}

func TestReadBigEndian(t *testing.T) {
	t.Parallel()
	kernel := vmlinux(binary.BigEndian)
	if id, err := kimage.BuildID(bytes.NewReader(kernel), int64(len(kernel))); err != nil || id != buildID {
		t.Errorf("BuildID = %q, %v; want %s", id, err, buildID)
	}
}

func TestBadImages(t *testing.T) {
	t.Parallel()
	kernel := vmlinux(binary.LittleEndian)
	good := bzImage(sized(pack(t, "lz4", kernel), len(kernel)))
	with := func(offset int, b ...byte) []byte {
		bad := bytes.Clone(good)
		copy(bad[offset:], b)
		return bad
	}
	flat := make([]byte, 4096)
	copy(flat, "MZ")
	copy(flat[0x38:], "ARM\x64")
	noID := bytes.Replace(kernel, []byte("GNU\x00"), []byte("XXX\x00"), 1)
	noBanner := bytes.ReplaceAll(kernel, []byte("Linux version"), []byte("Other version"))
	for name, tt := range map[string]struct {
		image []byte
		code  livepatch.Code
		says  string
	}{
		"empty":              {nil, livepatch.CodeInvalid, "no kernel image"},
		"text":               {bytes.Repeat([]byte("hello "), 1000), livepatch.CodeInvalid, "no kernel image"},
		"cut off":            {good[:len(good)-200], livepatch.CodeInvalid, "cut off"},
		"payload outside":    {with(0x248, 0xff, 0xff, 0xff, 0xff), livepatch.CodeInvalid, "cut off"},
		"empty payload":      {with(0x24c, 0, 0, 0, 0), livepatch.CodeInvalid, "cut off"},
		"damaged payload":    {with(4*512+716+8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), livepatch.CodeInvalid, "damaged"},
		"more than it says":  {bzImage(sized(pack(t, "zstd", kernel), len(kernel)-1)), livepatch.CodeInvalid, "damaged"},
		"less than it says":  {bzImage(sized(pack(t, "zstd", kernel), len(kernel)+1)), livepatch.CodeInvalid, "damaged"},
		"bomb":               {bzImage(sized(pack(t, "zstd", make([]byte, 1<<20)), 4096)), livepatch.CodeInvalid, "more than 4096 bytes"},
		"claims 4 GB":        {bzImage(sized(pack(t, "zstd", kernel), 0xffffffff)), livepatch.CodeInvalid, "claims to unpack"},
		"no kernel in it":    {bzImage(pack(t, "gzip", bytes.Repeat([]byte("x"), 5000))), livepatch.CodeInvalid, "no ELF kernel"},
		"flat arm64":         {flat, livepatch.CodeUnsupported, "arm64"},
		"without a build id": {noID, livepatch.CodeUnsupported, "no build id"},
		"not Linux":          {noBanner, livepatch.CodeInvalid, "no Linux kernel"},
		"32-bit":             {append([]byte("\x7fELF\x01\x01"), kernel[6:]...), livepatch.CodeUnsupported, "64-bit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := kimage.Read(bytes.NewReader(tt.image), int64(len(tt.image)))
			if livepatch.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Read = %v (%s), want %s saying %q", err, livepatch.CodeOf(err), tt.code, tt.says)
			}
		})
	}
}

// noise is n bytes that do not compress well, the same each time.
func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// Whatever the bytes are: no panic, no more than the bound, and a build id that is
// one and stands in the kernel that came out.
func FuzzRead(f *testing.F) {
	kernel := vmlinux(binary.LittleEndian)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(kernel)
	_ = w.Close()
	f.Add(kernel)
	f.Add(bzImage(packed.Bytes()))
	f.Add(zboot(packed.Bytes()))
	f.Fuzz(func(t *testing.T, image []byte) {
		img, err := kimage.Read(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			if img != nil {
				t.Error("an image and an error")
			}
			return
		}
		raw, err := hex.DecodeString(img.BuildID)
		if err != nil || !livepatch.ValidBuildID(img.BuildID) || !bytes.Contains(img.VMLinux, raw) {
			t.Errorf("build id %q", img.BuildID)
		}
		if !strings.HasPrefix(img.Version, "#") || img.Release == "" {
			t.Errorf("banner %q %q", img.Release, img.Version)
		}
	})
}

// calls is a kernel whose text has many bytes that look like calls and jumps, near
// each other and far, with operands that look like near targets and not.
func calls() []byte {
	b := vmlinux(binary.LittleEndian)
	for i, n := range noise(6000) {
		switch {
		case n < 60:
			b = append(b, 0xe8+n&1)
		case n < 130:
			b = append(b, 0)
		case n < 180:
			b = append(b, 0xff)
		default:
			b = append(b, n, byte(i))
		}
	}
	return b
}

// testdata/x86.xz is calls() packed as the kernel's build packs on x86, by xz 5.4.1:
//
//	xz --check=crc32 --x86 --lzma2=dict=32MiB
//
// No Go library writes that filter.
func TestReadX86XZ(t *testing.T) {
	t.Parallel()
	packed, err := os.ReadFile("testdata/x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	image := bzImage(sized(packed, len(calls())))
	img, err := kimage.Read(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if img.Format != "bzImage (xz)" || img.BuildID != buildID || !bytes.Equal(img.VMLinux, calls()) {
		t.Errorf("%s with build id %s did not come out as it went in", img.Format, img.BuildID)
	}
	for i := range packed[:40] { // headers and the beginning of the data
		bad := bytes.Clone(packed)
		bad[i] ^= 0x10
		image := bzImage(sized(bad, len(calls())))
		if _, err := kimage.Read(bytes.NewReader(image), int64(len(image))); err == nil {
			t.Errorf("a flipped bit in byte %d is not noticed", i)
		}
	}
}
