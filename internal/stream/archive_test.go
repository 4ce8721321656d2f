package stream_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"testing"

	"livepatch"
	"livepatch/internal/stream"
)

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// entry describes module and archive as a catalogue would.
func entry(module, archive []byte) livepatch.Livepatch {
	return livepatch.Livepatch{
		Version: livepatch.Version{Major: 1, Minor: 1},
		Module:  livepatch.Module{Name: "lp", Size: int64(len(module)), SHA256: sha(module)},
		Archive: livepatch.Blob{Size: int64(len(archive)), SHA256: sha(archive)},
	}
}

func TestCompressModule(t *testing.T) {
	t.Parallel()
	module := bytes.Repeat([]byte("the same code again and again "), 10_000)
	a, blob, err := stream.CompressModule(module)
	must(t, err)
	b, _, err := stream.CompressModule(module)
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Error("the same module gave two archives")
	}
	if blob.SHA256 != sha(a) || blob.Size != int64(len(a)) {
		t.Errorf("blob %+v does not describe the archive", blob)
	}
	var got bytes.Buffer
	must(t, stream.ExtractModule(bytes.NewReader(a), entry(module, a), &got))
	if !bytes.Equal(got.Bytes(), module) {
		t.Error("the module changed on the way")
	}
}

// TestExtractRefuses gives archives that are not what was signed. Whatever they
// claim, never more than the signed size comes out.
func TestExtractRefuses(t *testing.T) {
	t.Parallel()
	module := bytes.Repeat([]byte("module "), 5000)
	good, _, err := stream.CompressModule(module)
	must(t, err)
	bomb, _, err := stream.CompressModule(make([]byte, 32<<20))
	must(t, err)
	for name, c := range map[string]struct {
		lp      livepatch.Livepatch
		archive []byte
	}{
		"bomb":                   {entry(module, bomb), bomb},
		"more than announced":    {entry(module, good), append(bytes.Clone(good), good...)},
		"second frame":           {entry(module, append(bytes.Clone(good), good...)), append(bytes.Clone(good), good...)},
		"cut short":              {entry(module, good), good[:len(good)-3]},
		"signed cut short":       {entry(module, good[:len(good)-3]), good[:len(good)-3]},
		"empty":                  {entry(module, good), nil},
		"another module":         {entry(bytes.Repeat([]byte("MODULE "), 5000), good), good},
		"smaller module":         {entry(module[:100], good), good},
		"larger module":          {entry(append(bytes.Clone(module), 'x'), good), good},
		"byte flipped":           {entry(module, good), flip(good)},
		"no zstd":                {entry(module, module), module},
		"trailing junk":          {entry(module, append(bytes.Clone(good), "junk"...)), append(bytes.Clone(good), "junk"...)},
		"other bytes, same size": {entry(module, good), bytes.Repeat([]byte{0}, len(good))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out counter
			wantCode(t, stream.ExtractModule(bytes.NewReader(c.archive), c.lp, &out), livepatch.CodeTampered)
			if int64(out) > c.lp.Module.Size {
				t.Errorf("%d bytes came out of a module of %d", out, c.lp.Module.Size)
			}
		})
	}
}

func flip(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// TestExtractTransport lets the connection break: that is no tampering.
func TestExtractTransport(t *testing.T) {
	t.Parallel()
	module := bytes.Repeat([]byte("module "), 5000)
	good, _, err := stream.CompressModule(module)
	must(t, err)
	broken := errors.New("connection reset")
	err = stream.ExtractModule(io.MultiReader(bytes.NewReader(good[:10]), failing{broken}), entry(module, good), io.Discard)
	if !errors.Is(err, broken) || livepatch.CodeOf(err) == livepatch.CodeTampered {
		t.Errorf("%v, want the transport's error", err)
	}
}

func TestVerifyModule(t *testing.T) {
	t.Parallel()
	module := []byte("module")
	m := entry(module, nil).Module
	must(t, stream.VerifyModule(bytes.NewReader(module), m))
	for _, b := range []string{"", "modul", "module!", "Module"} {
		wantCode(t, stream.VerifyModule(bytes.NewReader([]byte(b)), m), livepatch.CodeTampered)
	}
}

// FuzzExtractModule holds that no archive makes more come out than was signed, and
// that nothing passes that is not the signed module.
func FuzzExtractModule(f *testing.F) {
	module := bytes.Repeat([]byte("module "), 500)
	good, _, err := stream.CompressModule(module)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(append(bytes.Clone(good), good...))
	f.Fuzz(func(t *testing.T, archive []byte) {
		lp := entry(module, archive)
		var out bytes.Buffer
		err := stream.ExtractModule(bytes.NewReader(archive), lp, &out)
		if int64(out.Len()) > lp.Module.Size {
			t.Errorf("%d bytes came out of a module of %d", out.Len(), lp.Module.Size)
		}
		if err == nil && !bytes.Equal(out.Bytes(), module) {
			t.Error("another module passed")
		}
	})
}
