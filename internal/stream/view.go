package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// View is what an operator works on: the stream's offline-signed metadata, verified,
// and from it the signed successors. Its methods return changes without
// signatures; Pending.Sign adds them.
type View struct {
	walk  *walk
	state state
	// catalogues are those of the kernels that were asked for, by target path.
	catalogues map[string]*livepatch.Catalogue
}

// View refreshes the top of the stream and loads the bins and catalogues of the
// given kernels; with none, all bins and no catalogues. Expiry is not looked at:
// what has expired must be renewable.
func (r *Reader) View(ctx context.Context, f Fetcher, kernels ...livepatch.KernelTarget) (*View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, next, err := r.begin(time.Time{})
	if err != nil {
		return nil, err
	}
	// Operators keep no bins: they read the current ones each time.
	next.Kernels = nil
	if err := w.followTop(ctx, f, &next); err != nil {
		return nil, err
	}
	if w.changed {
		if err := next.save(r.dir); err != nil {
			return nil, err
		}
		r.state = next
	}
	v := &View{walk: w, state: next, catalogues: map[string]*livepatch.Catalogue{}}
	if len(kernels) == 0 {
		for _, role := range bins().GetRoles() {
			if _, err := w.followTargets(ctx, f, nil, role, metadata.TARGETS); err != nil {
				return nil, err
			}
		}
		return v, nil
	}
	for _, k := range kernels {
		if err := v.loadKernel(ctx, f, k); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *View) loadKernel(ctx context.Context, f Fetcher, k livepatch.KernelTarget) error {
	if err := k.Validate(); err != nil {
		return err
	}
	path := TargetPath(k)
	if v.walk.set.Targets[binOf(path)] == nil {
		if _, err := v.walk.followTargets(ctx, f, nil, binOf(path), metadata.TARGETS); err != nil {
			return err
		}
	}
	target, err := v.walk.target(path)
	if livepatch.CodeOf(err) == livepatch.CodeUnsupported {
		return nil // not covered yet: SetCatalogue begins it
	}
	if err != nil {
		return err
	}
	b, err := v.walk.fetchTarget(ctx, f, target, path)
	if err != nil {
		return err
	}
	v.catalogues[path], err = ParseCatalogue(b, k)
	return err
}

// Catalogue returns a copy of the catalogue of a kernel that was asked for; an
// empty one when the stream does not cover it yet.
func (v *View) Catalogue(k livepatch.KernelTarget) livepatch.Catalogue {
	cat := v.catalogues[TargetPath(k)]
	if cat == nil {
		return livepatch.Catalogue{Kernel: k}
	}
	out := *cat
	out.Patches = slices.Clone(cat.Patches)
	return out
}

// Keys says whose signatures the stream trusts now.
func (v *View) Keys() (KeySet, error) { return keySet(v.walk.set.Root) }

// RootVersion is the version of the newest root.
func (v *View) RootVersion() int64 { return v.walk.set.Root.Signed.Version }

// Expiries tells when each top-level role expires, by role name; the bins that are
// loaded count as "bins", the first of them to expire.
func (v *View) Expiries() map[string]time.Time {
	set := v.walk.set
	out := map[string]time.Time{
		metadata.ROOT:      set.Root.Signed.Expires,
		metadata.TIMESTAMP: set.Timestamp.Signed.Expires,
		metadata.SNAPSHOT:  set.Snapshot.Signed.Expires,
		metadata.TARGETS:   set.Targets[metadata.TARGETS].Signed.Expires,
	}
	for role, bin := range set.Targets {
		if first, ok := out["bins"]; role != metadata.TARGETS && (!ok || bin.Signed.Expires.Before(first)) {
			out["bins"] = bin.Signed.Expires
		}
	}
	return out
}

func (v *View) pending(reason string) *Pending {
	return &Pending{
		Change:  Change{Metadata: map[string][]byte{}, Catalogues: map[string][]byte{}, Reason: reason},
		Root:    v.state.Root,
		Targets: v.state.Targets,
	}
}

// SetCatalogue makes the change that puts a catalogue in the place of the one in
// the view, whose kernel was asked for.
func (v *View) SetCatalogue(cat livepatch.Catalogue, reason string, life Lifetimes, now time.Time) (*Pending, error) {
	return v.SetCatalogues([]livepatch.Catalogue{cat}, reason, life, now)
}

// SetCatalogues is SetCatalogue for several kernels in one change.
func (v *View) SetCatalogues(cats []livepatch.Catalogue, reason string, life Lifetimes, now time.Time) (*Pending, error) {
	p := v.pending(reason)
	changed := map[string]*targetsMeta{}
	for i := range cats {
		path := TargetPath(cats[i].Kernel)
		role := binOf(path)
		if changed[role] == nil {
			bin := v.walk.set.Targets[role]
			if bin == nil {
				return nil, fmt.Errorf("set catalogue: kernel %s is not in the view", cats[i].Kernel)
			}
			next, err := successorOf(bin)
			if err != nil {
				return nil, err
			}
			next.Signed.Expires = expiry(now, life.withDefaults().Targets)
			changed[role] = next
		}
		b, target, err := v.encode(&cats[i])
		if err != nil {
			return nil, err
		}
		changed[role].Signed.Targets[path] = target
		p.Catalogues[path] = b
	}
	for role, bin := range changed {
		if err := put(p, role+".json", bin); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// encode checks a catalogue against the one before and makes its file and its entry
// in the bin.
func (v *View) encode(cat *livepatch.Catalogue) ([]byte, *metadata.TargetFiles, error) {
	if err := cat.Validate(); err != nil {
		return nil, nil, err
	}
	path := TargetPath(cat.Kernel)
	if _, _, err := difference(v.catalogues[path], cat); err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(cat)
	if err != nil {
		return nil, nil, fmt.Errorf("encode catalogue: %w", err)
	}
	if len(b) > livepatch.MaxCatalogueSize {
		return nil, nil, livepatch.Errorf(livepatch.CodeInvalid, "the catalogue of %s would have %d bytes, more than %d", cat.Kernel, len(b), livepatch.MaxCatalogueSize)
	}
	target := mustDescribeTarget(path, b)
	return b, target, setCustom(target, cat.Kernel)
}

// Renew makes the change that gives root, targets and all bins new expiries. The
// view must hold all bins.
func (v *View) Renew(reason string, life Lifetimes, now time.Time) (*Pending, error) {
	set, err := v.Keys()
	if err != nil {
		return nil, err
	}
	return v.Rotate(set, reason, life, now)
}

// Rotate makes the change that trusts the keys of set in place of today's: a new
// root, to be signed by enough of the old root keys and of the new, and targets and
// all bins, to be signed by the new signing keys. The view must hold all bins.
func (v *View) Rotate(set KeySet, reason string, life Lifetimes, now time.Time) (*Pending, error) {
	if err := set.Validate(); err != nil {
		return nil, err
	}
	life = life.withDefaults()
	p := v.pending(reason)
	root, err := successorOf(v.walk.set.Root)
	if err != nil {
		return nil, err
	}
	root.Signed.Expires = expiry(now, life.Root)
	if err := setRootKeys(root, set); err != nil {
		return nil, err
	}
	if err := put(p, fmt.Sprintf("%d.root.json", root.Signed.Version), root); err != nil {
		return nil, err
	}
	for _, role := range append([]string{metadata.TARGETS}, bins().GetRoles()...) {
		if v.walk.set.Targets[role] == nil {
			return nil, fmt.Errorf("rotate keys: %s is not in the view", role)
		}
		next, err := successorOf(v.walk.set.Targets[role])
		if err != nil {
			return nil, err
		}
		next.Signed.Expires = expiry(now, life.Targets)
		if role == metadata.TARGETS {
			if err := setDelegation(next, set); err != nil {
				return nil, err
			}
		}
		if err := put(p, role+".json", next); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// successorOf copies m with the next version number.
func successorOf[T metadata.Roles](m *metadata.Metadata[T]) (*metadata.Metadata[T], error) {
	b, err := m.ToBytes(false)
	if err != nil {
		return nil, err
	}
	next, err := parse[T](b)
	if err != nil {
		return nil, err
	}
	switch n := any(next).(type) {
	case *rootMeta:
		n.Signed.Version++
	case *targetsMeta:
		n.Signed.Version++
		if n.Signed.Targets == nil {
			n.Signed.Targets = map[string]*metadata.TargetFiles{}
		}
	}
	return next, nil
}
