package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"livepatch"
	"livepatch/internal/api"
)

// source is what a module was built from, ready for upload; zero when not given.
type source struct {
	blob    livepatch.Blob
	content []byte
}

// packSource takes a file as it is, and a folder as a compressed tar whose bytes
// depend on names, modes and contents only.
func packSource(path string) (source, error) {
	if path == "" {
		return source{}, nil
	}
	fi, err := os.Stat(path)
	if err != nil {
		return source{}, fmt.Errorf("read source: %w", err)
	}
	name := filepath.Base(filepath.Clean(path))
	var b []byte
	if fi.IsDir() {
		if abs, err := filepath.Abs(path); err == nil {
			name = filepath.Base(abs)
		}
		name += ".tar.zst"
		b, err = packFolder(os.DirFS(path))
	} else {
		b, err = readBounded(path, api.MaxSourceSize)
	}
	if err != nil {
		return source{}, fmt.Errorf("pack source: %w", err)
	}
	if len(b) > api.MaxSourceSize {
		return source{}, livepatch.Errorf(livepatch.CodeInvalid, "the packed source has %d bytes, more than %d: give only what the module is built from", len(b), api.MaxSourceSize)
	}
	return source{livepatch.Blob{SHA256: digest(b), Size: int64(len(b)), Name: name}, b}, nil
}

// packFolder makes a reproducible tar.zst of regular files, folders and links:
// sorted by name, no owners, no times. Version control is left out.
func packFolder(dir fs.FS) ([]byte, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	err = fs.WalkDir(dir, ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".":
			return nil
		case e.IsDir() && e.Name() == ".git":
			return fs.SkipDir
		}
		return packEntry(t, dir, name, e)
	})
	if err := errors.Join(err, t.Close(), z.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func packEntry(t *tar.Writer, dir fs.FS, name string, e fs.DirEntry) error {
	fi, err := e.Info()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX, Mode: 0o644}
	if fi.Mode()&0o111 != 0 {
		h.Mode = 0o755
	}
	switch {
	case e.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return t.WriteHeader(h)
	case fi.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = fs.ReadLink(dir, name); err != nil {
			return err
		}
		return t.WriteHeader(h)
	case !fi.Mode().IsRegular():
		return livepatch.Errorf(livepatch.CodeInvalid, "%s is neither file, folder nor link", name)
	}
	h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return errors.Join(err, f.Close())
}
