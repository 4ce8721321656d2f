package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"livepatch"
)

// maxWindow bounds what a zstd frame may make the reader allocate, in bytes. What
// CompressModule writes needs 4 MB.
const maxWindow = 8 << 20

// CompressModule makes the archive of a module: one zstd frame, the same bytes for
// the same module.
func CompressModule(module []byte) (archive []byte, blob livepatch.Blob, err error) {
	var out bytes.Buffer
	enc, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(4<<20), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, blob, fmt.Errorf("compress module: %w", err)
	}
	_, err = enc.Write(module)
	if err := errors.Join(err, enc.Close()); err != nil {
		return nil, blob, fmt.Errorf("compress module: %w", err)
	}
	archive = out.Bytes()
	return archive, livepatch.Blob{SHA256: hexDigest(archive), Size: int64(len(archive))}, nil
}

// FetchModule downloads p's archive and writes the module to w. What it wrote is
// the module only when it returns nil: on an error w has bytes that must be thrown
// away. Never more than the signed size is written, whatever the archive claims.
func FetchModule(ctx context.Context, f Fetcher, p livepatch.Livepatch, w io.Writer) error {
	name := ArchiveName(p.Archive.SHA256)
	got, err := f.Fetch(ctx, name, "")
	if err != nil {
		return missing(name, err)
	}
	defer got.Body.Close()
	return ExtractModule(got.Body, p, w)
}

// ExtractModule reads p's archive from r and writes the module to w; see
// FetchModule. A read failure of r is returned as it is, anything about the bytes
// is CodeTampered.
func ExtractModule(r io.Reader, p livepatch.Livepatch, w io.Writer) error {
	in := &meter{r: r, limit: p.Archive.Size, sum: sha256.New()}
	dec, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(uint64(livepatch.MaxModuleSize)))
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	defer dec.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(dec, p.Module.Size))
	if err == nil && n == p.Module.Size {
		// The frame must end here; one byte more is a bomb.
		var more int
		if more, err = io.ReadFull(dec, make([]byte, 1)); errors.Is(err, io.EOF) {
			err = nil
		}
		if more > 0 {
			return tampered(p, "its archive holds more than the %d bytes that were signed", p.Module.Size)
		}
	}
	switch {
	case in.err != nil:
		return fmt.Errorf("fetch module %s: %w", p.Module.Name, in.err)
	case in.over:
		return tampered(p, "its archive is larger than the %d bytes that were signed", p.Archive.Size)
	case err != nil && in.n < in.limit:
		return tampered(p, "its archive ends after %d of %d bytes", in.n, in.limit)
	case err != nil:
		return tampered(p, "its archive is damaged: %v", err)
	case n != p.Module.Size:
		return tampered(p, "its archive holds %d bytes, not the %d that were signed", n, p.Module.Size)
	}
	if err := in.finish(); err != nil {
		return fmt.Errorf("fetch module %s: %w", p.Module.Name, err)
	}
	if in.n != in.limit || in.over || !equalDigest(in.sum, p.Archive.SHA256) || !equalDigest(sum, p.Module.SHA256) {
		return tampered(p, "its bytes are not those that were signed")
	}
	return nil
}

// VerifyModule checks that r yields exactly the module m, for one that was kept on
// disk.
func VerifyModule(r io.Reader, m livepatch.Module) error {
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(r, m.Size+1))
	if err != nil {
		return fmt.Errorf("read module: %w", err)
	}
	if n != m.Size || !equalDigest(sum, m.SHA256) {
		return livepatch.Errorf(livepatch.CodeTampered, "module %s: its bytes are not those that were signed; it is not loaded", m.Name)
	}
	return nil
}

func equalDigest(sum hash.Hash, want string) bool { return hex.EncodeToString(sum.Sum(nil)) == want }

func tampered(p livepatch.Livepatch, format string, args ...any) error {
	return livepatch.Errorf(livepatch.CodeTampered, "livepatch %s is refused: %s", p.Version, fmt.Sprintf(format, args...))
}

// meter hands on at most limit bytes, hashes them, and remembers how the reading
// went: the decoder hides it.
type meter struct {
	r     io.Reader
	limit int64
	sum   hash.Hash

	n    int64
	over bool
	err  error
}

func (m *meter) Read(p []byte) (int, error) {
	if m.over {
		return 0, io.EOF
	}
	// One byte more than the limit is asked for, to notice that there is more.
	if room := m.limit - m.n + 1; int64(len(p)) > room {
		p = p[:room]
	}
	n, err := m.r.Read(p)
	if m.n+int64(n) > m.limit {
		m.over = true
		n = int(m.limit - m.n)
		err = io.EOF
	}
	m.sum.Write(p[:n])
	m.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		m.err = err
	}
	return n, err
}

// finish reads what the decoder left unread.
func (m *meter) finish() error {
	_, err := io.Copy(io.Discard, m)
	return err
}
