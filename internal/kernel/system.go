package kernel

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Loader changes the kernel. Its errors wrap the errno the kernel gave, so that
// errors.Is(err, syscall.EBUSY) works.
type Loader interface {
	// Load is finit_module(2) without flags: neither the version magic nor the
	// symbol versions are ever ignored.
	Load(f *os.File, params string) error
	// Unload is delete_module(2) with O_NONBLOCK: EAGAIN while the module is in
	// use, never forced.
	Unload(name string) error
	// SetEnabled writes 1 or 0 to the file enabled of a patch, whose path it is.
	SetEnabled(path string, on bool) error
}

// System is one machine's kernel. Its methods may be called at the same time; the
// kernel serialises what changes it.
type System struct {
	root   string
	loader Loader
}

// Open returns the kernel that is seen below root, "/" on a real machine. It does
// not touch it.
func Open(root string, l Loader) *System {
	return &System{root: root, loader: l}
}

// maxAttr bounds what is read of one attribute of /proc or /sys, in bytes; sysfs
// itself stops at a page, /proc/cpuinfo of a large machine is longer.
const maxAttr = 1 << 20

func (s *System) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// read returns the beginning of a file, at most maxAttr bytes.
func (s *System) read(name string) ([]byte, error) {
	f, err := os.Open(s.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAttr))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// line returns the trimmed content of a file, "" when it cannot be read.
func (s *System) line(name string) string {
	b, err := s.read(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (s *System) exists(name string) bool {
	_, err := os.Stat(s.path(name))
	return err == nil
}
