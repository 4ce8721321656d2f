package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tempPrefix marks files that are being written. ValidName refuses names that
// begin with a dot, so no blob is ever called so.
const tempPrefix = ".put-"

// Dir is a Store in a folder: one file a blob, folders for slashes. Files are
// readable by owner and group only.
type Dir struct {
	root *os.Root
}

// OpenDir opens the folder at dir, making it where it is missing. Symbolic links
// inside are not followed out of it.
func OpenDir(dir string) (*Dir, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("open blob folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open blob folder: %w", err)
	}
	return &Dir{root: root}, nil
}

// Close releases the folder.
func (d *Dir) Close() error { return d.root.Close() }

// Put implements Store: a temporary file beside the name, synced, renamed over it,
// and the folder synced.
func (d *Dir) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := ValidName(name); err != nil {
		return err
	}
	folder := path.Dir(name)
	if err := d.makeFolders(folder); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	temp, err := d.writeTemp(ctx, folder, r, size)
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := d.root.Rename(temp, name); err != nil {
		_ = d.root.Remove(temp)
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := d.sync(folder); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

// writeTemp writes exactly size bytes to a new file in folder and syncs it. On
// failure nothing is left behind.
func (d *Dir) writeTemp(ctx context.Context, folder string, r io.Reader, size int64) (name string, err error) {
	f, err := d.createTemp(folder)
	if err != nil {
		return "", err
	}
	name = path.Join(folder, filepath.Base(f.Name()))
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = d.root.Remove(name)
		}
	}()
	// One byte more than size is asked for, to notice a reader that has more.
	n, err := io.Copy(f, io.LimitReader(contextReader{ctx, r}, size+1))
	switch {
	case err != nil:
		return name, err
	case n > size:
		return name, fmt.Errorf("more than the %d bytes announced", size)
	case n < size:
		return name, fmt.Errorf("%d bytes of the %d announced: %w", n, size, io.ErrUnexpectedEOF)
	}
	return name, f.Sync()
}

// createTemp opens a new file in folder under a name that nobody else uses.
func (d *Dir) createTemp(folder string) (*os.File, error) {
	for i := 0; ; i++ {
		name := path.Join(folder, fmt.Sprintf("%s%d-%d", tempPrefix, os.Getpid(), i))
		f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
}

// makeFolders makes folder and its parents and syncs the parent of each one made.
func (d *Dir) makeFolders(folder string) error {
	if folder == "." {
		return nil
	}
	if _, err := d.root.Stat(folder); err == nil {
		return nil
	}
	parent := path.Dir(folder)
	if err := d.makeFolders(parent); err != nil {
		return err
	}
	if err := d.root.Mkdir(folder, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.sync(parent)
}

func (d *Dir) sync(folder string) error {
	f, err := d.root.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Get implements Store.
func (d *Dir) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if _, err := d.Stat(ctx, name); err != nil {
		return nil, err
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return f, nil
}

// Stat implements Store.
func (d *Dir) Stat(ctx context.Context, name string) (Info, error) {
	if err := errors.Join(ctx.Err(), ValidName(name)); err != nil {
		return Info{}, err
	}
	fi, err := d.root.Lstat(name)
	if err != nil {
		return Info{}, fmt.Errorf("stat %s: %w", name, notFound(err))
	}
	if !fi.Mode().IsRegular() {
		return Info{}, fmt.Errorf("stat %s: %w", name, ErrNotFound)
	}
	return Info{Name: name, Size: fi.Size(), Modified: fi.ModTime()}, nil
}

// notFound maps "a parent is a file" to ErrNotFound: nothing can be stored there.
func notFound(err error) error {
	if errors.Is(err, syscall.ENOTDIR) {
		return ErrNotFound
	}
	return err
}

// Delete implements Store.
func (d *Dir) Delete(ctx context.Context, name string) error {
	_, err := d.Stat(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return d.sync(path.Dir(name))
}

// List implements Store. It walks the whole folder that the prefix names.
func (d *Dir) List(ctx context.Context, prefix string) ([]Info, error) {
	start := "."
	if i := strings.LastIndexByte(prefix, '/'); i > 0 {
		start = prefix[:i]
		if err := ValidName(start); err != nil {
			return nil, err
		}
	}
	var found []Info
	err := fs.WalkDir(d.root.FS(), start, func(name string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed while we walk, or nothing there at all
		case err != nil:
			return err
		case !e.Type().IsRegular(), strings.HasPrefix(e.Name(), "."), !strings.HasPrefix(name, prefix):
			return ctx.Err()
		}
		fi, err := e.Info()
		if err != nil {
			return nil // removed while we walk
		}
		found = append(found, Info{Name: name, Size: fi.Size(), Modified: fi.ModTime()})
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	// WalkDir goes by folder; "a-b" sorts before "a/b" as text.
	slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
