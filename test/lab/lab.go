// Package lab prepares what tests and the demo need around virtual machines: real
// kernels and headers from the distribution's packages, livepatch modules compiled
// against them, a Debian system on a disk image, our own programs.
//
// What takes long to make is kept in a cache folder outside the tree, under names
// that contain a digest of everything it was made from, and is put there by one
// rename when it is whole: a file that is there is good, also after a crash.
package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"livepatch/internal/vm"
)

// Release is the kernel that tests and the demo run: a Debian 12 kernel that boots
// in seconds without hardware to look for.
const Release = "6.1.0-47-cloud-amd64"

// Lab is the place where things are prepared.
type Lab struct {
	// Root is the top of the source tree.
	Root string
	// Cache is the folder that outlives the run.
	Cache string
	// Log tells people what takes time.
	Log func(format string, args ...any)

	kvm vm.Prober
}

// New makes a lab of the tree that the working directory is in. The cache is
// LIVEPATCH_CACHE, or livepatch in the user's cache folder.
func New(log func(format string, args ...any)) (*Lab, error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	cache := os.Getenv("LIVEPATCH_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find cache folder: set LIVEPATCH_CACHE: %w", err)
		}
		cache = filepath.Join(base, "livepatch")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make cache folder: %w", err)
	}
	return &Lab{Root: root, Cache: cache, Log: log}, nil
}

// findRoot looks upwards for our go.mod.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find source tree: %w", err)
	}
	for {
		if mod, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && bytes.HasPrefix(mod, []byte("module livepatch\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find source tree: no go.mod of module livepatch in this folder or above")
		}
		dir = filepath.Dir(dir)
	}
}

// Accel is how virtual machines run here; found out once.
func (l *Lab) Accel(ctx context.Context, k *Kernel) vm.Accel {
	l.kvm.Kernel = k.Image
	return l.kvm.Accel(ctx)
}

// cached returns the path of name-KEY in the cache, with KEY the digest of parts,
// and makes it first by calling create with a temporary path when it is not there.
// Processes that want the same thing at once wait for the first.
func (l *Lab) cached(name string, parts []string, create func(tmp string) error) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	path := filepath.Join(l.Cache, name+"-"+hex.EncodeToString(sum[:8]))
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("prepare %s: %w", name, err)
	}
	start := time.Now()
	l.Log("preparing %s", name)
	if err := create(tmp); err != nil {
		return "", fmt.Errorf("prepare %s: %w", name, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return "", fmt.Errorf("prepare %s: %w", name, err)
	}
	l.Log("prepared %s in %.1f s", name, time.Since(start).Seconds())
	return path, nil
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close() //nolint:errcheck // nothing was written
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil //nolint:errcheck // nothing was written
}

// run runs a host command in dir and returns its standard output. Its error holds
// everything the command said.
func run(ctx context.Context, dir string, env []string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stdout, all bytes.Buffer
	cmd.Stdout = &both{&stdout, &all}
	cmd.Stderr = &all
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, strings.TrimSpace(all.String()))
	}
	return stdout.String(), nil
}

// both writes to two buffers.
type both struct{ a, b *bytes.Buffer }

func (w *both) Write(p []byte) (int, error) {
	w.a.Write(p)
	return w.b.Write(p)
}

// bin is where a program built from this tree lies. Every tree has a folder of its
// own: tests of two checkouts at once must not run each other's programs.
func (l *Lab) bin(name string) string {
	sum := sha256.Sum256([]byte(l.Root))
	return filepath.Join(l.Cache, "bin-"+hex.EncodeToString(sum[:8]), name)
}

// GoBuild builds one of our programs, without cgo so that it runs in any guest,
// and returns the path of the executable. Go's own cache makes repeating it cheap.
func (l *Lab) GoBuild(ctx context.Context, pkg string) (string, error) {
	out := l.bin(filepath.Base(pkg))
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	unlock, err := lock(out + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	_, err = run(ctx, l.Root, []string{"CGO_ENABLED=0"}, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	return out, nil
}

// GoTestBuild compiles the tests of a package, with a build tag, to run them in a
// guest.
func (l *Lab) GoTestBuild(ctx context.Context, pkg, tag string) (string, error) {
	out := l.bin(strings.ReplaceAll(strings.TrimPrefix(pkg, "./"), "/", "-") + ".test")
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", fmt.Errorf("build tests of %s: %w", pkg, err)
	}
	_, err := run(ctx, l.Root, []string{"CGO_ENABLED=0"}, "go", "test", "-c", "-trimpath", "-tags", tag, "-o", out, pkg)
	if err != nil {
		return "", fmt.Errorf("build tests of %s: %w", pkg, err)
	}
	return out, nil
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
