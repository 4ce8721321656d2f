package stream

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// Review is what a pending change does to the stream.
type Review struct {
	Added     []Published `json:"added,omitempty"`
	Withdrawn []Published `json:"withdrawn,omitempty"`
	// Keys are the keys that are trusted afterwards, nil when they stay the same.
	Keys *KeySet `json:"keys,omitempty"`
	// Renewed counts files that are only signed anew, with the same content.
	Renewed int `json:"renewed,omitempty"`
}

// Review holds a pending change of somebody else against the view, so that nobody
// signs what is not shown: every change of the stream is either in the review or an
// error. The view must hold all bins and catalogues that the change touches;
// Kernels names them. Signatures are not looked at.
func (v *View) Review(p *Pending) (Review, error) {
	var out Review
	root, err := v.reviewRoot(p, &out)
	if err != nil {
		return out, err
	}
	used := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(p.Metadata)) {
		if rootVersion(file) > 0 {
			continue
		}
		role := strings.TrimSuffix(file, ".json")
		is, err := v.reviewSuccessor(role, p.Metadata[file])
		if err != nil {
			return out, err
		}
		if role == metadata.TARGETS {
			out.Renewed++
			err = checkDelegatesTo(is, root)
		} else {
			err = v.reviewBin(p, role, is, &out, used)
		}
		if err != nil {
			return out, err
		}
	}
	for path := range p.Catalogues {
		if !used[path] {
			return out, livepatch.Errorf(livepatch.CodeInvalid, "the change brings %s, which its bins do not name", path)
		}
	}
	return out, nil
}

// reviewRoot reads the new root of a change, if any, and returns the keys that are
// trusted after it.
func (v *View) reviewRoot(p *Pending, out *Review) (KeySet, error) {
	before, err := v.Keys()
	if err != nil {
		return before, err
	}
	after := before
	for file := range p.Metadata {
		version := rootVersion(file)
		if version == 0 {
			continue
		}
		root, err := parse[metadata.RootType](p.Metadata[file])
		if err != nil {
			return after, tufError(file, err)
		}
		if version != v.RootVersion()+1 || root.Signed.Version != version {
			return after, conflict(file, v.RootVersion(), root.Signed.Version)
		}
		if after, err = keySet(root); err != nil {
			return after, err
		}
		if reflect.DeepEqual(before, after) {
			out.Renewed++
		} else {
			out.Keys = &after
		}
	}
	return after, nil
}

// reviewSuccessor reads targets or a bin and checks that it follows the view's.
func (v *View) reviewSuccessor(role string, b []byte) (*targetsMeta, error) {
	was := v.walk.set.Targets[role]
	if was == nil {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the change touches %s.json, which has none of its kernels", role)
	}
	is, err := parse[metadata.TargetsType](b)
	if err != nil {
		return nil, tufError(role+".json", err)
	}
	if is.Signed.Version != was.Signed.Version+1 {
		return nil, conflict(role+".json", was.Signed.Version, is.Signed.Version)
	}
	return is, nil
}

// checkDelegatesTo makes sure that the bins are signed by the keys that the root
// names for publishing, and by nobody else's.
func checkDelegatesTo(targets *targetsMeta, set KeySet) error {
	if err := checkDelegation(targets); err != nil {
		return tufError("targets.json", err)
	}
	d := targets.Signed.Delegations
	ids := make([]string, len(set.Signing))
	for i, k := range set.Signing {
		ids[i] = k.ID()
	}
	if !slices.Equal(slices.Sorted(slices.Values(ids)), slices.Sorted(slices.Values(d.SuccinctRoles.KeyIDs))) || d.SuccinctRoles.Threshold != set.SigningThreshold {
		return livepatch.Errorf(livepatch.CodeInvalid, "targets.json lets other keys publish than the root names")
	}
	for id, k := range d.Keys {
		// A key id is the digest of its key: under another id it would be another's.
		if got, err := k.ID(); err != nil || got != id {
			return livepatch.Errorf(livepatch.CodeInvalid, "targets.json lists a key under the id of another")
		}
	}
	return nil
}

// reviewBin holds a bin against the one before: what differs must be a catalogue
// that the change brings.
func (v *View) reviewBin(p *Pending, role string, is *targetsMeta, out *Review, used map[string]bool) error {
	was := v.walk.set.Targets[role]
	if is.Signed.Delegations != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "%s.json delegates further", role)
	}
	for path := range was.Signed.Targets {
		if is.Signed.Targets[path] == nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "%s.json drops %s", role, path)
		}
	}
	changed := false
	for _, path := range slices.Sorted(maps.Keys(is.Signed.Targets)) {
		target := is.Signed.Targets[path]
		if old := was.Signed.Targets[path]; old != nil && sameTarget(old, target) && sameCustom(old, target) {
			continue
		}
		changed = true
		used[path] = true
		if err := v.reviewCatalogue(p, path, target, out); err != nil {
			return fmt.Errorf("%s.json: %w", role, err)
		}
	}
	if !changed {
		out.Renewed++
	}
	return nil
}

func sameCustom(a, b *metadata.TargetFiles) bool {
	if a.Custom == nil || b.Custom == nil {
		return a.Custom == b.Custom
	}
	return bytes.Equal(*a.Custom, *b.Custom)
}

func (v *View) reviewCatalogue(p *Pending, path string, target *metadata.TargetFiles, out *Review) error {
	k, err := ParseTargetPath(path)
	if err != nil {
		return err
	}
	b, ok := p.Catalogues[path]
	if !ok {
		return livepatch.Errorf(livepatch.CodeInvalid, "it changes %s without showing how", path)
	}
	if err := target.VerifyLengthHashes(b); err != nil {
		return tufError(path, err)
	}
	if err := checkCustom(target, k); err != nil {
		return err
	}
	is, err := ParseCatalogue(b, k)
	if err != nil {
		return err
	}
	added, withdrawn, err := difference(v.catalogues[path], is)
	if err != nil {
		return err
	}
	for _, lp := range added {
		out.Added = append(out.Added, Published{k, lp})
	}
	for _, lp := range withdrawn {
		out.Withdrawn = append(out.Withdrawn, Published{k, lp})
	}
	return nil
}

// Kernels are the kernels that the change is about; none when it is about keys.
func (p *Pending) Kernels() ([]livepatch.KernelTarget, error) {
	var out []livepatch.KernelTarget
	for _, path := range slices.Sorted(maps.Keys(p.Catalogues)) {
		k, err := ParseTargetPath(path)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}
