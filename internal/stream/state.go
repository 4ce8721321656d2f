package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"livepatch"
)

const stateFile = "stream.json"

// state is what a Reader keeps on disk: one consistent set of verified metadata.
// It is one file, replaced whole, so that a crash leaves the old set or the new
// one and never a mixture that would not verify at the next boot.
type state struct {
	// First is the fingerprint of the root that trust began with, Trusted how.
	First   string `json:"first"`
	Trusted string `json:"trusted"`

	Root []byte `json:"root"`
	// Ahead is a newer root, verified by a check that did not come to its end; nil
	// for none. The next check begins with it, so that keys it revokes are never
	// believed again. What is kept was signed under Root and verifies with that.
	Ahead     []byte `json:"ahead,omitempty"`
	Timestamp []byte `json:"timestamp,omitempty"`
	// ETag names Timestamp on the server.
	ETag     string `json:"etag,omitempty"`
	Snapshot []byte `json:"snapshot,omitempty"`
	Targets  []byte `json:"targets,omitempty"`
	// Kernels holds what was followed so far, by target path.
	Kernels map[string]kernelState `json:"kernels,omitempty"`
}

type kernelState struct {
	Bin []byte `json:"bin"`
	// Catalogue is nil when the bin says that the kernel is not covered.
	Catalogue []byte `json:"catalogue,omitempty"`
}

func loadState(dir string) (state, error) {
	var s state
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, livepatch.Errorf(livepatch.CodeNotEnabled, "no root of the stream is trusted yet")
	}
	if err != nil {
		return s, fmt.Errorf("load stream state: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil || len(s.Root) == 0 {
		return s, livepatch.Errorf(livepatch.CodeDisk, "%s is damaged; enable this machine again to begin a new one", filepath.Join(dir, stateFile))
	}
	return s, nil
}

// newest is the root to begin a check with.
func (s state) newest() []byte {
	if s.Ahead != nil {
		return s.Ahead
	}
	return s.Root
}

// save replaces the state on disk, synced.
func (s state) save(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode stream state: %w", err)
	}
	if err := replaceFile(dir, stateFile, b); err != nil {
		return livepatch.Errorf(livepatch.CodeDisk, "the stream's state was not saved and stays as it was; make room and writable %s: %w", dir, err)
	}
	return nil
}

// replaceFile writes name in dir whole or not at all: temporary file, sync,
// rename, sync of the folder.
func replaceFile(dir, name string, b []byte) (err error) {
	f, err := os.CreateTemp(dir, "."+name+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
