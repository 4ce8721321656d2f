package stream

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"livepatch"
)

// Reader follows the stream for one machine. It keeps what it verified in a folder
// and is safe for use by several goroutines.
type Reader struct {
	dir string

	mu    sync.Mutex
	state state
}

// Trust begins to trust root, whose first version or whatever version the
// operator's package ships, and returns a Reader that keeps its state in dir.
// trusted is how the root came here, for status: "package", "fingerprint" or
// "tls". With want not empty, root must have that Fingerprint. A folder that
// trusts the same root already keeps what it knows.
func Trust(dir string, root []byte, want, trusted string) (*Reader, error) {
	first := Fingerprint(root)
	if want != "" && want != first {
		return nil, livepatch.Errorf(livepatch.CodeMetadata, "the server's root has the fingerprint %s, not the expected %s: it is another server, or somebody is in between", first, want)
	}
	if r, err := Open(dir); err == nil && r.state.First == first {
		return r, nil
	}
	if _, err := newWalk(root, time.Time{}); err != nil {
		return nil, tufError("root.json", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, livepatch.Errorf(livepatch.CodeDisk, "the stream's state has no place in %s; make room and make it writable: %w", dir, err)
	}
	s := state{First: first, Trusted: trusted, Root: root}
	if err := s.save(dir); err != nil {
		return nil, err
	}
	return &Reader{dir: dir, state: s}, nil
}

// Open returns the Reader of a folder where trust began already; CodeNotEnabled
// when it did not.
func Open(dir string) (*Reader, error) {
	s, err := loadState(dir)
	if err != nil {
		return nil, err
	}
	return &Reader{dir: dir, state: s}, nil
}

// First returns the fingerprint of the root that trust began with, and how it
// came to be trusted.
func (r *Reader) First() (fingerprint, trusted string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.First, r.state.Trusted
}

// Refresh brings the state up to date and returns the catalogue of kernel k.
//
// Nothing is believed that is expired at now, older than what was seen before, or
// not signed; then the state stays as it was, but for newer roots that were
// verified: they are kept at once. CodeUnsupported is the stream's
// signed word that k is not covered; the state is brought up to date with it.
func (r *Reader) Refresh(ctx context.Context, f Fetcher, k livepatch.KernelTarget, now time.Time) (*livepatch.Catalogue, error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	w, next, err := r.begin(now)
	if err != nil {
		return nil, err
	}
	cat, err := w.follow(ctx, f, &next, k)
	if err != nil && livepatch.CodeOf(err) != livepatch.CodeUnsupported {
		return nil, w.explainClock(err)
	}
	if w.changed {
		if err := next.save(r.dir); err != nil {
			return nil, err
		}
		r.state = next
	}
	return cat, err
}

// begin starts a walk from the newest root that was verified, and returns it with
// the state that it brings up to date.
func (r *Reader) begin(now time.Time) (*walk, state, error) {
	next := r.state
	next.Root, next.Ahead = r.state.newest(), nil
	w, err := newWalk(next.Root, now)
	if err != nil {
		return nil, state{}, tufError("root.json", err)
	}
	w.changed = r.state.Ahead != nil
	w.rooted = func(root []byte) error {
		kept := r.state
		kept.Ahead = root
		if err := kept.save(r.dir); err != nil {
			return err
		}
		r.state = kept
		return nil
	}
	return w, next, nil
}

// Cached returns the catalogue of kernel k as it was when last refreshed, without
// network: all signatures are verified again against the trusted root, only
// expiry is not looked at, because a machine must be patched at boot even after a
// long time off. CodeNotFound when there is nothing for k, CodeUnsupported when k
// is known not to be covered.
func (r *Reader) Cached(k livepatch.KernelTarget) (*livepatch.Catalogue, error) {
	if err := k.Validate(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept, ok := r.state.Kernels[TargetPath(k)]
	if !ok {
		return nil, livepatch.Errorf(livepatch.CodeNotFound, "nothing about kernel %s is kept from an earlier check", k)
	}
	// The zero time is before every expiry.
	w, err := newWalk(r.state.Root, time.Time{})
	if err != nil {
		return nil, tufError("root.json", err)
	}
	return w.again(r.state, kept, k)
}

// again verifies a kept state from the root down to k's catalogue.
func (w *walk) again(s state, kept kernelState, k livepatch.KernelTarget) (*livepatch.Catalogue, error) {
	path := TargetPath(k)
	for _, step := range []struct {
		name string
		load func() error
	}{
		{"timestamp.json", func() error { return w.updateTimestamp(s.Timestamp) }},
		{"snapshot.json", func() error { return w.updateSnapshot(s.Snapshot, false) }},
		{"targets.json", func() error { return w.updateTargets(s.Targets, "targets", "root") }},
		{binOf(path) + ".json", func() error { return w.updateTargets(kept.Bin, binOf(path), "targets") }},
	} {
		if err := step.load(); err != nil {
			return nil, tufError(step.name, err)
		}
	}
	target, err := w.target(path)
	if err != nil {
		return nil, err
	}
	if err := target.VerifyLengthHashes(kept.Catalogue); err != nil {
		return nil, tufError(path, err)
	}
	cat, err := ParseCatalogue(kept.Catalogue, k)
	if err != nil {
		return nil, fmt.Errorf("kept catalogue: %w", err)
	}
	return cat, nil
}
