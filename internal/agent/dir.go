package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"livepatch"
)

// The files of the state folder.
const (
	identityFile = "identity.json"
	journalFile  = "journal.json"
	stateFile    = "state.json"
	settingsFile = "settings.yaml"
	orderlyFile  = "orderly"
	streamDir    = "stream"
	moduleDir    = "modules"
)

// maxStateFile bounds what is read of one state file, in bytes. The largest is
// state.json with its queue of reports.
const maxStateFile = 4 << 20

// dir is the state folder. A file in it is either the old one or the new one,
// also after a power cut.
type dir struct {
	path string
	// create opens the temporary file that becomes name; a seam for full disks.
	create func(path string) (file, error)
}

// file is what dir needs of an os.File.
type file interface {
	io.WriteCloser
	Sync() error
}

// openDir makes the folder when it is missing. Nobody but root may look into it:
// it holds the credential.
func openDir(path string) (*dir, error) {
	if err := os.MkdirAll(filepath.Join(path, moduleDir), 0o700); err != nil {
		return nil, diskError(path, err)
	}
	return &dir{path: path, create: func(p string) (file, error) {
		return os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	}}, nil
}

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

// write replaces name by data. When it fails, the old file is still there.
func (d *dir) write(name string, data []byte) error {
	return d.fill(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// fill replaces name by what f writes, unless f or the disk fails. Errors of f
// that have a code are returned as they are.
func (d *dir) fill(name string, f func(io.Writer) error) error {
	tmp := d.file(name + ".new")
	err := func() error {
		out, err := d.create(tmp)
		if err != nil {
			return err
		}
		w := &diskWriter{w: out}
		err = f(w)
		if w.err != nil {
			err = w.err // whatever f made of it
		}
		if err == nil {
			err = out.Sync()
		}
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
		if err := os.Rename(tmp, d.file(name)); err != nil {
			return err
		}
		return d.sync(filepath.Dir(name))
	}()
	if err != nil {
		_ = os.Remove(tmp) // frees the space; a left-over is overwritten next time
		var known *livepatch.Error
		if errors.As(err, &known) {
			return known
		}
		return diskError(d.file(name), err)
	}
	return nil
}

// diskWriter remembers that the disk failed: who writes to it may take that for a
// fault of what is written.
type diskWriter struct {
	w   io.Writer
	err error
}

func (d *diskWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if err != nil {
		d.err = err
	}
	return n, err
}

// sync makes renames and removals in a folder durable.
func (d *dir) sync(folder string) error {
	f, err := os.Open(d.file(folder))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// remove deletes files; those that are missing already are fine.
func (d *dir) remove(names ...string) error {
	for _, name := range names {
		if err := os.RemoveAll(d.file(name)); err != nil {
			return diskError(d.file(name), err)
		}
	}
	if err := d.sync("."); err != nil {
		return diskError(d.path, err)
	}
	return nil
}

// read returns a whole file of at most limit bytes; fs.ErrNotExist is wrapped.
func (d *dir) read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(d.file(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	// One byte more than allowed tells a file that is too long.
	if n, err := io.Copy(&b, io.LimitReader(f, limit+1)); err != nil || n > limit {
		return nil, fmt.Errorf("read %s: %d bytes or more: %w", f.Name(), n, errors.Join(err, errTooLong))
	}
	return b.Bytes(), nil
}

var errTooLong = errors.New("longer than expected")

func (d *dir) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return d.write(name, append(b, '\n'))
}

// readJSON fills v; ok is false when the file does not exist.
func (d *dir) readJSON(name string, v any) (ok bool, err error) {
	b, err := d.read(name, maxStateFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, diskError(d.file(name), err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, livepatch.Errorf(livepatch.CodeDisk, "%s is damaged; remove it and restart livepatchd: %w", d.file(name), errors.Join(errDamaged, err))
	}
	return true, nil
}

// errDamaged is in the chain of the error about a file that does not parse.
var errDamaged = errors.New("not what livepatchd writes")

// setAside keeps a damaged file under another name, for people, and returns its path.
// One that was set aside before is replaced.
func (d *dir) setAside(name string) (string, error) {
	aside := d.file(name + ".damaged")
	if err := errors.Join(os.Rename(d.file(name), aside), d.sync(filepath.Dir(name))); err != nil {
		return "", diskError(d.file(name), err)
	}
	return aside, nil
}

// diskError says what to do about the disk.
func diskError(path string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return livepatch.Errorf(livepatch.CodeDisk, "the disk is full: %s was not written and stays as it was; free some space: %w", path, err)
	}
	return livepatch.Errorf(livepatch.CodeDisk, "%s is not accessible: %w", path, err)
}
