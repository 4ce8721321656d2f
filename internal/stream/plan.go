package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// current is what the store has online. Its signatures were checked when it was
// accepted. All nil while the stream is empty.
type current struct {
	root      *rootMeta
	timestamp *timestampMeta
	snapshot  *snapshotMeta
	targets   *targetsMeta
}

// current reads the top-level metadata that is online.
func (p *Publisher) current(ctx context.Context) (*current, error) {
	cur := &current{}
	b, err := p.get(ctx, StoreName(timestampName))
	if errors.Is(err, fs.ErrNotExist) {
		return cur, nil
	}
	if err != nil {
		return nil, err
	}
	if cur.timestamp, err = parse[metadata.TimestampType](b); err != nil {
		return nil, fmt.Errorf("read stored timestamp: %w", err)
	}
	v := cur.timestamp.Signed.Meta["snapshot.json"].Version
	if cur.snapshot, err = load[metadata.SnapshotType](ctx, p, metadata.SNAPSHOT, v); err != nil {
		return nil, err
	}
	v = cur.snapshot.Signed.Meta["targets.json"].Version
	if cur.targets, err = load[metadata.TargetsType](ctx, p, metadata.TARGETS, v); err != nil {
		return nil, err
	}
	cur.root, err = p.latestRoot(ctx)
	return cur, err
}

// latestRoot asks for one version after the other: roots are few.
func (p *Publisher) latestRoot(ctx context.Context) (*rootMeta, error) {
	var latest *rootMeta
	for v := int64(1); ; v++ {
		m, err := load[metadata.RootType](ctx, p, metadata.ROOT, v)
		if errors.Is(err, fs.ErrNotExist) {
			return latest, nil
		}
		if err != nil {
			return nil, err
		}
		latest = m
	}
}

func load[T metadata.Roles](ctx context.Context, p *Publisher, role string, version int64) (*metadata.Metadata[T], error) {
	name := metadataName(role, version)
	b, err := p.get(ctx, StoreName(name))
	if err != nil {
		return nil, err
	}
	m, err := parse[T](b)
	if err != nil {
		return nil, fmt.Errorf("read stored %s: %w", name, err)
	}
	return m, nil
}

func (cur *current) bin(ctx context.Context, p *Publisher, name string) (*targetsMeta, error) {
	return load[metadata.TargetsType](ctx, p, name, cur.snapshot.Signed.Meta[name+".json"].Version)
}

func (cur *current) catalogue(ctx context.Context, p *Publisher, bin *targetsMeta, path string) (*livepatch.Catalogue, error) {
	k, err := ParseTargetPath(path)
	if err != nil {
		return nil, err
	}
	b, err := p.get(ctx, StoreName(catalogueName(path, bin.Signed.Targets[path].Hashes["sha256"].String())))
	if err != nil {
		return nil, err
	}
	return ParseCatalogue(b, k)
}

// plan is a verified change: what is to be written, and what it means.
type plan struct {
	result Result
	now    *current
	// files are metadata and catalogues by name in the stream, without roots.
	files map[string][]byte
	roots map[string][]byte
	// root is the one in force after the change.
	root *rootMeta
	// snapshot is the new one, not yet signed.
	snapshot *snapshotMeta
}

// planner holds a change against the stream.
type planner struct {
	*plan
	p      *Publisher
	change Change
	ref    time.Time
	// targets is what is in force after the change.
	targets *targetsMeta
	// used are the catalogues of the change that a bin refers to.
	used map[string]bool
	// unpacked are the archives that were found to hold their module, by both
	// digests: many kernels' livepatches may share one.
	unpacked map[[2]string]bool
}

// plan verifies a change: each file is the signed successor of the one online, and
// afterwards everything online verifies from the newest root down, as a client
// would see it. Expiry is measured against now.
func (p *Publisher) plan(ctx context.Context, c Change, now time.Time) (*plan, error) {
	cur, err := p.current(ctx)
	if err != nil {
		return nil, err
	}
	pl := &planner{
		plan:    &plan{now: cur, root: cur.root, files: map[string][]byte{}, roots: map[string][]byte{}},
		p:       p,
		change:  c,
		ref:     now,
		targets: cur.targets,
		used:    map[string]bool{},

		unpacked: map[[2]string]bool{},
	}
	for _, check := range []func(context.Context) error{
		pl.checkNames, pl.checkRoots, pl.beginSnapshot, pl.checkTargets, pl.checkBins, pl.checkUnused,
	} {
		if err := check(ctx); err != nil {
			return nil, err
		}
	}
	pl.result.Changed = len(pl.files) > 0 || len(pl.result.Roots) > 0
	if pl.result.Trust, err = p.Trust(ctx); err != nil {
		return nil, err
	}
	if first, ok := pl.roots[metadataName(metadata.ROOT, 1)]; ok {
		pl.result.Trust = Fingerprint(first)
	}
	return pl.plan, nil
}

func (pl *planner) checkNames(context.Context) error {
	if len(pl.change.Metadata) == 0 {
		return livepatch.Errorf(livepatch.CodeInvalid, "the change holds no metadata")
	}
	for name, b := range pl.change.Metadata {
		role, isJSON := strings.CutSuffix(name, ".json")
		switch {
		case rootVersion(name) == 0 && (!isJSON || role != metadata.TARGETS && !bins().IsDelegatedRole(role)):
			return livepatch.Errorf(livepatch.CodeInvalid, "%q is no file of the stream that is signed offline", name)
		case len(b) > maxTargetsSize, rootVersion(name) > 0 && len(b) > maxRootSize:
			return livepatch.Errorf(livepatch.CodeInvalid, "%s has %d bytes, more than clients accept", name, len(b))
		}
	}
	return nil
}

// checkRoots follows the roots of the change in the order of their versions.
func (pl *planner) checkRoots(ctx context.Context) error {
	var versions []int64
	for name := range pl.change.Metadata {
		if v := rootVersion(name); v > 0 {
			versions = append(versions, v)
		}
	}
	slices.Sort(versions)
	for _, v := range versions {
		if err := pl.checkRoot(ctx, v); err != nil {
			return err
		}
	}
	if pl.root == nil {
		return livepatch.Errorf(livepatch.CodeConflict, "the stream is empty: push its first root before anything else")
	}
	// With other online keys than this server's in it the stream would stop here.
	_, err := pl.p.keysFor(pl.root)
	return err
}

func (pl *planner) checkRoot(ctx context.Context, v int64) error {
	name, b := fmt.Sprintf("%d.root.json", v), pl.change.Metadata[fmt.Sprintf("%d.root.json", v)]
	same, err := pl.stored(ctx, metadataName(metadata.ROOT, v), b)
	if err != nil {
		return err
	}
	if same && pl.now.root != nil {
		return nil
	}
	next, err := parse[metadata.RootType](b)
	if err != nil {
		return tufError(name, err)
	}
	before := int64(0)
	if pl.root != nil {
		before = pl.root.Signed.Version
		if err := verify(pl.root, metadata.ROOT, next); err != nil {
			return tufError(name, err)
		}
	}
	if next.Signed.Version != v || v != before+1 {
		return conflict(name, before, next.Signed.Version)
	}
	if err := verify(next, metadata.ROOT, next); err != nil {
		return tufError(name, err)
	}
	if next.Signed.IsExpired(pl.ref) {
		return livepatch.Errorf(livepatch.CodeExpired, "%s has expired already; sign it anew", name)
	}
	if !next.Signed.ConsistentSnapshot {
		return livepatch.Errorf(livepatch.CodeInvalid, "%s does not ask for consistent snapshots", name)
	}
	pl.root = next
	pl.roots[metadataName(metadata.ROOT, v)] = b
	pl.result.Roots = append(pl.result.Roots, v)
	return nil
}

// beginSnapshot starts the next snapshot from the current one.
func (pl *planner) beginSnapshot(context.Context) error {
	pl.snapshot = metadata.Snapshot(pl.ref)
	if pl.now.snapshot == nil {
		pl.snapshot.Signed.Meta = map[string]*metadata.MetaFiles{}
		return nil
	}
	pl.snapshot.Signed.Version = pl.now.snapshot.Signed.Version + 1
	pl.snapshot.Signed.Meta = maps.Clone(pl.now.snapshot.Signed.Meta)
	return nil
}

// successor parses a targets-type file of the change and checks its version. It
// returns nil when the change does not have the file or the stream has had it.
func (pl *planner) successor(ctx context.Context, role string) (*targetsMeta, error) {
	file := role + ".json"
	b, ok := pl.change.Metadata[file]
	if !ok {
		return nil, nil
	}
	m, err := parse[metadata.TargetsType](b)
	if err != nil {
		return nil, tufError(file, err)
	}
	before := int64(0)
	if entry := pl.snapshot.Signed.Meta[file]; entry != nil {
		before = entry.Version
	}
	name := metadataName(role, m.Signed.Version)
	if m.Signed.Version <= before {
		same, err := pl.stored(ctx, name, b)
		if err != nil || same {
			return nil, err
		}
	}
	if m.Signed.Version != before+1 {
		return nil, conflict(file, before, m.Signed.Version)
	}
	if m.Signed.IsExpired(pl.ref) {
		return nil, livepatch.Errorf(livepatch.CodeExpired, "%s has expired already; sign it anew", file)
	}
	pl.files[name] = b
	pl.snapshot.Signed.Meta[file] = describe(m.Signed.Version, b)
	return m, nil
}

func (pl *planner) checkTargets(ctx context.Context) error {
	next, err := pl.successor(ctx, metadata.TARGETS)
	if err != nil {
		return err
	}
	if next != nil {
		pl.targets = next
	}
	if pl.targets == nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "the first change of a stream needs targets.json")
	}
	if next == nil && len(pl.result.Roots) == 0 {
		return nil
	}
	if err := checkDelegation(pl.targets); err != nil {
		return tufError("targets.json", err)
	}
	return tufError("targets.json", verify(pl.root, metadata.TARGETS, pl.targets))
}

// checkBins checks every bin of the change, and those that are not in it under the
// keys that will be in force.
func (pl *planner) checkBins(ctx context.Context) error {
	rekeyed := pl.targets != pl.now.targets
	for _, role := range bins().GetRoles() {
		next, err := pl.successor(ctx, role)
		if err != nil {
			return err
		}
		var before *targetsMeta
		if pl.now.snapshot != nil && (next != nil || rekeyed) {
			if before, err = pl.now.bin(ctx, pl.p, role); err != nil {
				return err
			}
		}
		bin := next
		if bin == nil {
			bin = before
		}
		if bin == nil && pl.now.snapshot == nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "the first change of a stream needs %s.json", role)
		}
		if bin != nil {
			if err := verify(pl.targets, role, bin); err != nil {
				return tufError(role+".json", err)
			}
		}
		if next != nil {
			if err := pl.checkContent(ctx, role, before, next); err != nil {
				return fmt.Errorf("%s: %w", role, err)
			}
		}
	}
	return nil
}

// checkContent checks what a new bin lists, against the bin before.
func (pl *planner) checkContent(ctx context.Context, role string, before, next *targetsMeta) error {
	if next.Signed.Delegations != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "a bin must not delegate further")
	}
	if before != nil {
		for path := range before.Signed.Targets {
			if next.Signed.Targets[path] == nil {
				return livepatch.Errorf(livepatch.CodeInvalid, "%s is gone: a catalogue is never removed", path)
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(next.Signed.Targets)) {
		var old *livepatch.Catalogue
		target := next.Signed.Targets[path]
		if before != nil && before.Signed.Targets[path] != nil {
			if sameTarget(before.Signed.Targets[path], target) {
				if _, ok := pl.change.Catalogues[path]; ok {
					pl.used[path] = true
				}
				continue
			}
			var err error
			if old, err = pl.now.catalogue(ctx, pl.p, before, path); err != nil {
				return err
			}
		}
		if err := pl.checkCatalogue(ctx, role, path, target, old); err != nil {
			return err
		}
	}
	return nil
}

func sameTarget(a, b *metadata.TargetFiles) bool {
	return a.Length == b.Length && maps.EqualFunc(a.Hashes, b.Hashes, func(x, y metadata.HexBytes) bool { return bytes.Equal(x, y) })
}

// checkCatalogue checks one new or changed catalogue.
func (pl *planner) checkCatalogue(ctx context.Context, role, path string, target *metadata.TargetFiles, old *livepatch.Catalogue) error {
	k, err := ParseTargetPath(path)
	if err != nil {
		return err
	}
	b, ok := pl.change.Catalogues[path]
	switch {
	case binOf(path) != role:
		return livepatch.Errorf(livepatch.CodeInvalid, "%s does not belong into this bin but into %s", path, binOf(path))
	case !ok:
		return livepatch.Errorf(livepatch.CodeInvalid, "the change names a new %s without bringing it", path)
	case len(target.Hashes) != 1 || target.Hashes["sha256"] == nil:
		return livepatch.Errorf(livepatch.CodeInvalid, "%s is not named by its SHA-256 alone", path)
	}
	if err := target.VerifyLengthHashes(b); err != nil {
		return tufError(path, err)
	}
	if err := checkCustom(target, k); err != nil {
		return err
	}
	next, err := ParseCatalogue(b, k)
	if err != nil {
		return err
	}
	added, withdrawn, err := difference(old, next)
	if err != nil {
		return err
	}
	for _, lp := range added {
		if err := pl.checkBlobs(ctx, lp); err != nil {
			return err
		}
		pl.result.Added = append(pl.result.Added, Published{k, lp})
	}
	for _, lp := range withdrawn {
		pl.result.Withdrawn = append(pl.result.Withdrawn, Published{k, lp})
	}
	pl.result.Catalogues = append(pl.result.Catalogues, *next)
	pl.used[path] = true
	pl.files[catalogueName(path, target.Hashes["sha256"].String())] = b
	return nil
}

// difference is what next has that old had not. A catalogue only grows: no
// livepatch is removed and none changes, but that it is withdrawn, for good.
func difference(old, next *livepatch.Catalogue) (added, withdrawn []livepatch.Livepatch, err error) {
	if old == nil {
		old = &livepatch.Catalogue{}
	}
	for _, was := range old.Patches {
		is := next.Find(was.Version)
		if is == nil {
			return nil, nil, livepatch.Errorf(livepatch.CodeInvalid, "livepatch %s of %s is gone: withdraw it instead", was.Version, next.Kernel.Release)
		}
		if was.Withdrawn == nil && is.Withdrawn != nil {
			withdrawn = append(withdrawn, *is)
			was.Withdrawn = is.Withdrawn
		}
		if !reflect.DeepEqual(was, *is) {
			return nil, nil, livepatch.Errorf(livepatch.CodeInvalid, "livepatch %s of %s differs from what was published: publish a new version instead", was.Version, next.Kernel.Release)
		}
	}
	for _, is := range next.Patches {
		if old.Find(is.Version) == nil {
			added = append(added, is)
		}
	}
	return added, withdrawn, nil
}

// checkBlobs makes sure that what a new livepatch names has been uploaded and that
// the archive holds the module.
func (pl *planner) checkBlobs(ctx context.Context, lp livepatch.Livepatch) error {
	if err := pl.checkArchive(ctx, lp); err != nil {
		return err
	}
	if lp.Source == (livepatch.Blob{}) {
		return nil
	}
	r, err := pl.p.Store.Get(ctx, StoreName(SourceName(lp.Source.SHA256)))
	if errors.Is(err, fs.ErrNotExist) {
		return livepatch.Errorf(livepatch.CodeConflict, "the source of livepatch %s (%s) has not been uploaded", lp.Version, lp.Source.SHA256)
	}
	if err != nil {
		return fmt.Errorf("read source: %w", err)
	}
	return r.Close()
}

func (pl *planner) checkArchive(ctx context.Context, lp livepatch.Livepatch) error {
	both := [2]string{lp.Archive.SHA256, lp.Module.SHA256}
	if pl.unpacked[both] {
		return nil
	}
	r, err := pl.p.Store.Get(ctx, StoreName(ArchiveName(lp.Archive.SHA256)))
	if errors.Is(err, fs.ErrNotExist) {
		return livepatch.Errorf(livepatch.CodeConflict, "the archive of livepatch %s (%s) has not been uploaded", lp.Version, lp.Archive.SHA256)
	}
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	err = ExtractModule(r, lp, io.Discard)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	pl.unpacked[both] = true
	return nil
}

func (pl *planner) checkUnused(ctx context.Context) error {
	for path, b := range pl.change.Catalogues {
		if pl.used[path] {
			continue
		}
		// The stream may have had all of it, when the change comes a second time.
		if _, err := ParseTargetPath(path); err != nil {
			return err
		}
		same, err := pl.stored(ctx, catalogueName(path, hexDigest(b)), b)
		if err != nil {
			return err
		}
		if !same {
			return livepatch.Errorf(livepatch.CodeInvalid, "the change brings %s, which none of its bins names", path)
		}
	}
	return nil
}

// stored tells whether the store has these very bytes under name.
func (pl *planner) stored(ctx context.Context, name string, b []byte) (bool, error) {
	have, err := pl.p.get(ctx, StoreName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Equal(have, b), err
}

func conflict(name string, have, got int64) error {
	return livepatch.Errorf(livepatch.CodeConflict, "%s is version %d, but the stream's next is %d: somebody else published meanwhile; try again", name, got, have+1)
}
