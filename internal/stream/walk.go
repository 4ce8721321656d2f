package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"livepatch"
)

// clockTolerance is how far this machine's clock may be from the server's before
// an expiry is blamed on the clock.
const clockTolerance = time.Hour

// walk is one pass through the stream's metadata, from a trusted root down to one
// catalogue. The trusted set inside enforces order, signatures, versions and
// expiry; a walk is used once.
type walk struct {
	set *trustedmetadata.TrustedMetadata
	now time.Time
	// date is the server's clock as its answers told, zero if they did not.
	date time.Time
	// changed tells that the state is not what it was.
	changed bool
	// rooted is called with every newer root as soon as it is verified; may be nil.
	rooted func(root []byte) error
}

// newWalk starts from a root that is trusted already; it must be signed by its own
// keys all the same. now is what expiry is measured against.
func newWalk(root []byte, now time.Time) (*walk, error) {
	w := &walk{now: now}
	err := guard(func() (err error) {
		w.set, err = trustedmetadata.New(root)
		return err
	})
	if err != nil {
		return nil, err
	}
	w.set.RefTime = now
	return w, nil
}

// The update methods hand bytes to the trusted set.

func (w *walk) updateRoot(b []byte) error {
	return guard(func() error { _, err := w.set.UpdateRoot(b); return err })
}

func (w *walk) updateTimestamp(b []byte) error {
	return guard(func() error { _, err := w.set.UpdateTimestamp(b); return err })
}

// updateSnapshot loads a snapshot. With old it need not be the one that the
// timestamp names: it serves for protection against rollback.
func (w *walk) updateSnapshot(b []byte, old bool) error {
	return guard(func() error { _, err := w.set.UpdateSnapshot(b, old); return err })
}

// updateTargets loads targets or a bin. The delegator is always the one of this
// walk, so that a kept bin is never measured against the keys of an old targets
// file. TAP 15 delegation trusts one set of keys for all bins, and go-tuf accepts
// any role name under it: the name must be that of a bin.
func (w *walk) updateTargets(b []byte, role, delegator string) error {
	if role != metadata.TARGETS && !bins().IsDelegatedRole(role) {
		return &metadata.ErrRepository{Msg: role + " is no role of the stream"}
	}
	return guard(func() error {
		if _, err := w.set.UpdateDelegatedTargets(b, role, delegator); err != nil {
			return err
		}
		if role == metadata.TARGETS {
			return checkDelegation(w.set.Targets[role])
		}
		return nil
	})
}

// checkDelegation holds targets to the one layout this package reads: nothing of
// its own, everything in the bins.
func checkDelegation(targets *targetsMeta) error {
	d := targets.Signed.Delegations
	switch {
	case d == nil || d.SuccinctRoles == nil || len(d.Roles) > 0:
		return &metadata.ErrRepository{Msg: "targets does not delegate to hash bins"}
	case d.SuccinctRoles.BitLength != binBits || d.SuccinctRoles.NamePrefix != binPrefix:
		return &metadata.ErrRepository{Msg: "targets delegates to other bins than this program knows"}
	case len(targets.Signed.Targets) > 0:
		return &metadata.ErrRepository{Msg: "targets lists targets of its own"}
	}
	return nil
}

// follow refreshes s in place and returns the catalogue of k.
func (w *walk) follow(ctx context.Context, f Fetcher, s *state, k livepatch.KernelTarget) (*livepatch.Catalogue, error) {
	if err := w.followTop(ctx, f, s); err != nil {
		return nil, err
	}
	path := TargetPath(k)
	kept := s.Kernels[path]
	s.Kernels = maps.Clone(s.Kernels)
	if s.Kernels == nil {
		s.Kernels = map[string]kernelState{}
	}
	bin, err := w.followTargets(ctx, f, kept.Bin, binOf(path), metadata.TARGETS)
	if err != nil {
		return nil, err
	}
	target, err := w.target(path)
	if livepatch.CodeOf(err) == livepatch.CodeUnsupported {
		s.Kernels[path] = kernelState{Bin: bin}
		w.dropOutdated(s)
	}
	if err != nil {
		return nil, err
	}
	b := kept.Catalogue
	if target.VerifyLengthHashes(b) != nil {
		if b, err = w.fetchTarget(ctx, f, target, path); err != nil {
			return nil, err
		}
		w.changed = true
	}
	cat, err := ParseCatalogue(b, k)
	if err != nil {
		return nil, err
	}
	s.Kernels[path] = kernelState{Bin: bin, Catalogue: b}
	w.dropOutdated(s)
	return cat, nil
}

// followTop refreshes root, timestamp, snapshot and targets.
func (w *walk) followTop(ctx context.Context, f Fetcher, s *state) error {
	if err := w.followRoot(ctx, f, s); err != nil {
		return err
	}
	if err := w.followTimestamp(ctx, f, s); err != nil {
		return err
	}
	if err := w.followSnapshot(ctx, f, s); err != nil {
		return err
	}
	b, err := w.followTargets(ctx, f, s.Targets, metadata.TARGETS, metadata.ROOT)
	if err != nil {
		return err
	}
	s.Targets = b
	return nil
}

// followRoot loads every newer root the server has, one version after the other.
func (w *walk) followRoot(ctx context.Context, f Fetcher, s *state) error {
	for range maxRoots {
		name := metadataName(metadata.ROOT, w.set.Root.Signed.Version+1)
		b, got, err := fetchAll(ctx, f, name, maxRootSize, "")
		w.noteDate(got)
		if livepatch.CodeOf(err) == livepatch.CodeNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.updateRoot(b); err != nil {
			return tufError(name, err)
		}
		s.Root, w.changed = b, true
		if w.rooted != nil {
			if err := w.rooted(b); err != nil {
				return err
			}
		}
	}
	return livepatch.Errorf(livepatch.CodeMetadata, "the server offers more than %d new roots; it is not believed", maxRoots)
}

func (w *walk) followTimestamp(ctx context.Context, f Fetcher, s *state) error {
	// The kept one first: the new one must not be older. When it does not verify
	// (its key was rotated, or it expired, which still counts) that is no failure.
	if s.Timestamp != nil {
		_ = w.updateTimestamp(s.Timestamp)
	}
	etag := s.ETag
	if w.set.Timestamp == nil {
		etag = ""
	}
	b, got, err := fetchAll(ctx, f, timestampName, maxTimestampSize, etag)
	w.noteDate(got)
	if livepatch.CodeOf(err) == livepatch.CodeNotFound {
		return livepatch.Errorf(livepatch.CodeUnavailable, "the server has no stream: its operator has not pushed keys yet, or the address is not that of a livepatch server: %w", err)
	}
	if err != nil {
		return err
	}
	if got.NotModified && etag != "" {
		if w.set.Timestamp.Signed.IsExpired(w.now) {
			return tufError(timestampName, &metadata.ErrExpiredMetadata{Msg: "timestamp.json is expired"})
		}
		return nil
	}
	err = w.updateTimestamp(b)
	if same := new(metadata.ErrEqualVersionNumber); errors.As(err, &same) {
		if !bytes.Equal(b, s.Timestamp) {
			return livepatch.Errorf(livepatch.CodeTampered, "the server has two different timestamps of the same version; neither is believed")
		}
		err = nil
	}
	if err != nil {
		return tufError(timestampName, err)
	}
	if !bytes.Equal(b, s.Timestamp) || got.ETag != s.ETag {
		s.Timestamp, s.ETag, w.changed = b, got.ETag, true
	}
	return nil
}

func (w *walk) followSnapshot(ctx context.Context, f Fetcher, s *state) error {
	if s.Snapshot != nil && w.updateSnapshot(s.Snapshot, false) == nil {
		return nil
	}
	if s.Snapshot != nil {
		// Not the current one: it only protects against rollback.
		_ = w.updateSnapshot(s.Snapshot, true)
	}
	var entry *metadata.MetaFiles
	if entry = w.set.Timestamp.Signed.Meta["snapshot.json"]; entry == nil {
		return tufError(timestampName, &metadata.ErrRepository{Msg: "timestamp names no snapshot"})
	}
	b, name, err := w.fetchMeta(ctx, f, metadata.SNAPSHOT, entry, maxSnapshotSize)
	if err != nil {
		return err
	}
	if err := w.updateSnapshot(b, false); err != nil {
		return tufError(name, err)
	}
	s.Snapshot, w.changed = b, true
	return nil
}

// followTargets loads targets or a bin: kept, if it is still the current one, else
// from the server. It returns the bytes that were accepted.
func (w *walk) followTargets(ctx context.Context, f Fetcher, kept []byte, role, delegator string) ([]byte, error) {
	if kept != nil && w.updateTargets(kept, role, delegator) == nil {
		return kept, nil
	}
	// A kept file that failed after it was loaded must not stand for the new one.
	delete(w.set.Targets, role)
	entry := w.set.Snapshot.Signed.Meta[role+".json"]
	if entry == nil {
		return nil, tufError(metadata.SNAPSHOT, &metadata.ErrRepository{Msg: "snapshot does not name " + role})
	}
	b, name, err := w.fetchMeta(ctx, f, role, entry, maxTargetsSize)
	if err != nil {
		return nil, err
	}
	if err := w.updateTargets(b, role, delegator); err != nil {
		return nil, tufError(name, err)
	}
	w.changed = true
	return b, nil
}

// fetchMeta fetches the version of a role that entry names, bounded by the length
// in it.
func (w *walk) fetchMeta(ctx context.Context, f Fetcher, role string, entry *metadata.MetaFiles, limit int64) ([]byte, string, error) {
	name := metadataName(role, entry.Version)
	if entry.Length > 0 && entry.Length < limit {
		limit = entry.Length
	}
	b, got, err := fetchAll(ctx, f, name, limit, "")
	w.noteDate(got)
	return b, name, missing(name, err)
}

// target finds a path in its bin. That it is missing is the stream's word that the
// kernel is not covered.
func (w *walk) target(path string) (*metadata.TargetFiles, error) {
	bin := w.set.Targets[binOf(path)]
	if bin == nil || bin.Signed.Targets[path] == nil {
		k, err := ParseTargetPath(path)
		if err != nil {
			return nil, err
		}
		return nil, livepatch.Errorf(livepatch.CodeUnsupported, "kernel %s is not covered by this service", k)
	}
	target := bin.Signed.Targets[path]
	k, err := ParseTargetPath(path)
	if err != nil {
		return nil, err
	}
	return target, checkCustom(target, k)
}

func (w *walk) fetchTarget(ctx context.Context, f Fetcher, target *metadata.TargetFiles, path string) ([]byte, error) {
	name := catalogueName(path, target.Hashes["sha256"].String())
	if target.Length < 0 || target.Length > livepatch.MaxCatalogueSize {
		return nil, livepatch.Errorf(livepatch.CodeTampered, "%s is announced with %d bytes, more than the %d it may have", path, target.Length, livepatch.MaxCatalogueSize)
	}
	b, got, err := fetchAll(ctx, f, name, target.Length, "")
	w.noteDate(got)
	if err != nil {
		return nil, missing(name, err)
	}
	return b, tufError(name, target.VerifyLengthHashes(b))
}

// dropOutdated forgets kernels whose bin is no longer the one that the snapshot
// names: they would not verify at the next boot.
func (w *walk) dropOutdated(s *state) {
	for path, kept := range s.Kernels {
		entry := w.set.Snapshot.Signed.Meta[binOf(path)+".json"]
		if entry == nil || entry.VerifyLengthHashes(kept.Bin) != nil {
			delete(s.Kernels, path)
			w.changed = true
		}
	}
}

func (w *walk) noteDate(got Fetched) {
	if !got.Date.IsZero() {
		w.date = got.Date
	}
}

// explainClock blames an expiry on this machine's clock when the server's differs
// from it a lot. Nothing is accepted on the server's word.
func (w *walk) explainClock(err error) error {
	off := w.now.Sub(w.date)
	if livepatch.CodeOf(err) != livepatch.CodeExpired || w.date.IsZero() || off.Abs() < clockTolerance {
		return err
	}
	return livepatch.Errorf(livepatch.CodeClock, "this machine's clock says %s, the server's %s: set the clock, then check again: %w",
		w.now.UTC().Format(time.DateTime), w.date.UTC().Format(time.DateTime), err)
}

// missing turns "not found" for a file that the stream itself names into a fault
// of the server.
func missing(name string, err error) error {
	if livepatch.CodeOf(err) == livepatch.CodeNotFound {
		return livepatch.Errorf(livepatch.CodeMetadata, "the server does not have %s, which its stream names; its store is incomplete: %w", name, err)
	}
	return err
}

// ParseCatalogue reads the catalogue of kernel k and validates it. It does not
// look at signatures: the bytes have been verified before.
func ParseCatalogue(b []byte, k livepatch.KernelTarget) (*livepatch.Catalogue, error) {
	if len(b) > livepatch.MaxCatalogueSize {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the catalogue of %s has %d bytes, more than %d", k, len(b), livepatch.MaxCatalogueSize)
	}
	var cat livepatch.Catalogue
	if err := json.Unmarshal(b, &cat); err != nil {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the catalogue of %s is not readable: %w", k, err)
	}
	if cat.Kernel != k {
		return nil, livepatch.Errorf(livepatch.CodeWrongKernel, "the catalogue at the place of %s is that of %s", k, cat.Kernel)
	}
	if err := cat.Validate(); err != nil {
		return nil, err
	}
	return &cat, nil
}
