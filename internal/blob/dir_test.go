package blob_test

import (
	"os"
	"path/filepath"
	"testing"

	"livepatch/internal/blob"
	"livepatch/internal/blob/blobtest"
)

func open(t *testing.T, dir string) *blob.Dir {
	t.Helper()
	d, err := blob.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDir(t *testing.T) {
	t.Parallel()
	blobtest.Run(t, func(t *testing.T) blob.Store { return open(t, filepath.Join(t.TempDir(), "made")) })
}

func TestMemory(t *testing.T) {
	t.Parallel()
	blobtest.Run(t, func(*testing.T) blob.Store { return new(blob.Memory) })
}

func TestDirStaysInside(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	if err := os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, filepath.Join(top, "blobs"))
	for link, target := range map[string]string{"file": "../secret", "folder": ".."} {
		if err := os.Symlink(target, filepath.Join(top, "blobs", link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"file", "folder/secret"} {
		if r, err := d.Get(t.Context(), name); err == nil {
			r.Close()
			t.Errorf("Get(%s) followed a link out of the folder", name)
		}
	}
}
