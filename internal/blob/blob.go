// Package blob stores bytes by name: stream metadata, archives, sources. Dir keeps
// them in a folder, Memory nowhere. Every implementation passes the suite in package blobtest.
package blob

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
)

// ErrNotFound is returned (wrapped) by Get and Stat for a name that holds nothing.
// It is fs.ErrNotExist, so that callers need not import this package to ask.
var ErrNotFound = fs.ErrNotExist

// MaxNameLength bounds a name, in bytes.
const MaxNameLength = 512

// Store keeps bytes by name. Names are slash-separated paths such as
// "stream/metadata/timestamp.json"; see ValidName. Methods may be called from
// several goroutines.
type Store interface {
	// Put stores exactly size bytes from r under name, replacing what was there.
	// When it returns nil the bytes survive a crash; when it does not, readers
	// see what was there before, whole. A reader that yields more or fewer bytes
	// than size is an error.
	Put(ctx context.Context, name string, r io.Reader, size int64) error
	// Get opens what is stored under name. The bytes are those of one Put even
	// when another follows while they are read.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// Stat tells size and time of what is stored under name.
	Stat(ctx context.Context, name string) (Info, error)
	// Delete removes name; removing what is not there is no error.
	Delete(ctx context.Context, name string) error
	// List returns everything whose name begins with prefix, by name. The prefix
	// is of text, not of folders: "stream/me" finds "stream/metadata/x".
	List(ctx context.Context, prefix string) ([]Info, error)
}

// Info describes one blob.
type Info struct {
	Name string
	// Size is in bytes.
	Size int64
	// Modified is when it was put, by the store's clock.
	Modified time.Time
}

// ValidName says what is wrong with a name. What passes stays below the store's
// top on every file system and object store: relative, no empty, "." or ".."
// element, no element that begins with a dot (those are the store's own), letters,
// digits and "._+~-" only.
func ValidName(name string) error {
	if name == "" || len(name) > MaxNameLength {
		return fmt.Errorf("blob name %q: length is outside 1 to %d", name, MaxNameLength)
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == "" || element[0] == '.' {
			return fmt.Errorf("blob name %q: an element is empty or begins with a dot", name)
		}
		if i := strings.IndexFunc(element, notAllowed); i >= 0 {
			return fmt.Errorf("blob name %q: character %q is not allowed", name, element[i])
		}
	}
	return nil
}

func notAllowed(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("._+~-", r)
}
