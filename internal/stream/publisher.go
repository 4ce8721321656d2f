package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// Store is what a Publisher needs of a blob store; blob.Store has it. A name that
// holds nothing is fs.ErrNotExist.
type Store interface {
	Put(ctx context.Context, name string, r io.Reader, size int64) error
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	Delete(ctx context.Context, name string) error
}

// acceptedName is where a change is kept from before its first file is written
// until its timestamp is: what a crash cut short is finished from it. It is outside
// of what is served.
const acceptedName = "publisher/accepted.json"

// Publisher is the server's end of the stream. It holds no offline key: it can put
// online what was signed elsewhere, and nothing else.
//
// One Publisher at a time may write to a store; several in one process must be the
// same one. It keeps no state but the store's, so a new one can take over.
type Publisher struct {
	Store Store
	// Keys sign snapshot and timestamp. Spare are further pairs: a new root may name
	// one of them in the place of Keys, which are then used no more.
	Keys  OnlineKeys
	Spare []OnlineKeys
	// Life is how long snapshot and timestamp are good for.
	Life Lifetimes
	// Now is the clock.
	Now func() time.Time
	// Step, when set, is called with a name before each durable step; an error
	// stops there, as a crash would. For tests.
	Step func(name string) error

	mu sync.Mutex
}

// accepted is what is kept under acceptedName.
type accepted struct {
	// At is when the change was accepted: what expiry is measured against, so that
	// it can be finished however much later.
	At     time.Time `json:"at"`
	Change Change    `json:"change"`
}

// Published names one livepatch.
type Published struct {
	Kernel    livepatch.KernelTarget `json:"kernel"`
	Livepatch livepatch.Livepatch    `json:"livepatch"`
}

// Result is what a change did.
type Result struct {
	// Changed is false when the stream had it all already.
	Changed bool
	// Trust is the fingerprint of the stream's first root.
	Trust string
	// Catalogues are the new catalogues, whole.
	Catalogues []livepatch.Catalogue
	// Added and Withdrawn are the livepatches that differ from before.
	Added, Withdrawn []Published
	// Roots are the versions of new roots.
	Roots []int64
}

// Check says what Accept would do, and refuses what Accept would refuse, without
// writing anything.
func (p *Publisher) Check(ctx context.Context, c Change) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	plan, err := p.plan(ctx, c, p.Now())
	if err != nil {
		return Result{}, err
	}
	return plan.result, nil
}

// Accept verifies a change as a client would and puts it online. The new timestamp
// is the commit point: readers see nothing of it before and everything after.
// A change that is online already is no error. CodeConflict when the stream has
// moved on since the change was signed; CodeMetadata, CodeTampered or CodeInvalid
// when it is not acceptable. When it fails with another error, or crashes, it may
// have been kept: the next call of any method that writes finishes it.
func (p *Publisher) Accept(ctx context.Context, c Change) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.finish(ctx); err != nil {
		return Result{}, err
	}
	now := p.Now()
	plan, err := p.plan(ctx, c, now)
	if err != nil {
		return Result{}, err
	}
	if !plan.result.Changed {
		return plan.result, nil
	}
	b, err := json.Marshal(accepted{now, c})
	if err != nil {
		return Result{}, fmt.Errorf("encode change: %w", err)
	}
	if err := p.put(ctx, acceptedName, b); err != nil {
		return Result{}, err
	}
	return plan.result, p.commit(ctx, plan)
}

// Finish completes a change that a crash cut short; call it at start-up. Without
// one it does nothing.
func (p *Publisher) Finish(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.finish(ctx)
}

func (p *Publisher) finish(ctx context.Context) error {
	b, err := p.get(ctx, acceptedName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var a accepted
	if err := json.Unmarshal(b, &a); err != nil {
		return fmt.Errorf("read accepted change: %w", err)
	}
	plan, err := p.plan(ctx, a.Change, a.At)
	if err != nil {
		return fmt.Errorf("finish accepted change: %w", err)
	}
	if !plan.result.Changed {
		return p.remove(ctx, acceptedName)
	}
	return p.commit(ctx, plan)
}

// commit writes a plan: first what nothing refers to yet, then snapshot, roots and
// timestamp, the commit point.
func (p *Publisher) commit(ctx context.Context, plan *plan) error {
	for _, name := range slices.Sorted(maps.Keys(plan.files)) {
		if err := p.put(ctx, StoreName(name), plan.files[name]); err != nil {
			return err
		}
	}
	snapshot, timestamp, err := p.seal(plan.root, plan.now.timestamp, plan.snapshot)
	if err != nil {
		return err
	}
	if err := p.put(ctx, StoreName(snapshot.name), snapshot.content); err != nil {
		return err
	}
	// Roots come late: from the moment a root is there, clients measure the rest
	// by it.
	for _, v := range plan.result.Roots {
		name := metadataName(metadata.ROOT, v)
		if err := p.put(ctx, StoreName(name), plan.roots[name]); err != nil {
			return err
		}
	}
	if err := p.put(ctx, StoreName(timestamp.name), timestamp.content); err != nil {
		return err
	}
	return p.remove(ctx, acceptedName)
}

type file struct {
	name    string
	content []byte
}

// keysFor finds the online keys that a root names.
func (p *Publisher) keysFor(root *rootMeta) (OnlineKeys, error) {
	set, err := keySet(root)
	if err != nil {
		return OnlineKeys{}, err
	}
	for _, k := range append([]OnlineKeys{p.Keys}, p.Spare...) {
		if k.Public() == set.Online {
			return k, nil
		}
	}
	return OnlineKeys{}, livepatch.Errorf(livepatch.CodeInvalid, "root %d names other online keys than this server has loaded; make it with this server's online-keys.json, or restart the server first if it made online-keys-next.json since it started", root.Signed.Version)
}

// seal signs a snapshot and the timestamp that names it, with the keys that root
// names. before is the current timestamp, nil for the first.
func (p *Publisher) seal(root *rootMeta, before *timestampMeta, snapshot *snapshotMeta) (s, t file, err error) {
	keys, err := p.keysFor(root)
	if err != nil {
		return s, t, err
	}
	life := p.Life.withDefaults()
	now := p.Now()
	snapshot.Signed.Expires = expiry(now, life.Snapshot)
	s, err = signed(metadataName(metadata.SNAPSHOT, snapshot.Signed.Version), snapshot, keys.Snapshot)
	if err != nil {
		return s, t, err
	}
	timestamp := metadata.Timestamp(expiry(now, life.Timestamp))
	if before != nil {
		timestamp.Signed.Version = before.Signed.Version + 1
	}
	timestamp.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": describe(snapshot.Signed.Version, s.content)}
	t, err = signed(timestampName, timestamp, keys.Timestamp)
	return s, t, err
}

func signed[T metadata.Roles](name string, m *metadata.Metadata[T], k Key) (file, error) {
	m.ClearSignatures()
	if err := sign(m, k); err != nil {
		return file{}, err
	}
	b, err := m.ToBytes(false)
	if err != nil {
		return file{}, fmt.Errorf("encode %s: %w", name, err)
	}
	return file{name, b}, nil
}

// Renew signs a new timestamp, and a new snapshot, when less than half of their
// life is left. It tells whether it did, and when to call it again at the latest.
// An empty stream needs nothing.
func (p *Publisher) Renew(ctx context.Context) (renewed bool, next time.Time, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	life := p.Life.withDefaults()
	if err := p.finish(ctx); err != nil {
		return false, time.Time{}, err
	}
	cur, err := p.current(ctx)
	if err != nil {
		return false, time.Time{}, err
	}
	now := p.Now()
	if cur.root == nil {
		return false, now.Add(life.Timestamp / 2), nil
	}
	half := cur.timestamp.Signed.Expires.Add(-life.Timestamp / 2)
	if now.Before(half) {
		return false, half, nil
	}
	snapshot := cur.snapshot
	if now.Before(snapshot.Signed.Expires.Add(-life.Snapshot / 2)) {
		err = p.renewTimestamp(ctx, cur)
	} else {
		snapshot.Signed.Version++
		err = p.reseal(ctx, cur, snapshot)
	}
	return err == nil, now.Add(life.Timestamp / 2), err
}

func (p *Publisher) renewTimestamp(ctx context.Context, cur *current) error {
	keys, err := p.keysFor(cur.root)
	if err != nil {
		return err
	}
	timestamp := cur.timestamp
	timestamp.Signed.Version++
	timestamp.Signed.Expires = expiry(p.Now(), p.Life.withDefaults().Timestamp)
	t, err := signed(timestampName, timestamp, keys.Timestamp)
	if err != nil {
		return err
	}
	return p.put(ctx, StoreName(t.name), t.content)
}

func (p *Publisher) reseal(ctx context.Context, cur *current, snapshot *snapshotMeta) error {
	s, t, err := p.seal(cur.root, cur.timestamp, snapshot)
	if err != nil {
		return err
	}
	if err := p.put(ctx, StoreName(s.name), s.content); err != nil {
		return err
	}
	return p.put(ctx, StoreName(t.name), t.content)
}

// Trust returns the fingerprint of the stream's first root, "" while the stream is
// empty.
func (p *Publisher) Trust(ctx context.Context) (string, error) {
	b, err := p.get(ctx, StoreName(metadataName(metadata.ROOT, 1)))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return Fingerprint(b), nil
}

// Catalogues returns every catalogue that is online, by architecture and release:
// what a database of livepatches can be rebuilt from.
func (p *Publisher) Catalogues(ctx context.Context) ([]livepatch.Catalogue, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cur, err := p.current(ctx)
	if err != nil || cur.root == nil {
		return nil, err
	}
	found := map[string]livepatch.Catalogue{}
	for _, name := range bins().GetRoles() {
		bin, err := cur.bin(ctx, p, name)
		if err != nil {
			return nil, err
		}
		for path := range bin.Signed.Targets {
			cat, err := cur.catalogue(ctx, p, bin, path)
			if err != nil {
				return nil, err
			}
			found[path] = *cat
		}
	}
	out := make([]livepatch.Catalogue, 0, len(found))
	for _, path := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[path])
	}
	return out, nil
}

func (p *Publisher) put(ctx context.Context, name string, b []byte) error {
	if err := p.step("put " + name); err != nil {
		return err
	}
	if err := p.Store.Put(ctx, name, bytes.NewReader(b), int64(len(b))); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

func (p *Publisher) remove(ctx context.Context, name string) error {
	if err := p.step("delete " + name); err != nil {
		return err
	}
	return p.Store.Delete(ctx, name)
}

func (p *Publisher) step(name string) error {
	if p.Step == nil {
		return nil
	}
	return p.Step(name)
}

func (p *Publisher) get(ctx context.Context, name string) ([]byte, error) {
	r, err := p.Store.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}
