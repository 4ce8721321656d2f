package stream

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// Change is a signed change of the stream, to be accepted by a Publisher. It has
// the fields of api.Publication.
type Change struct {
	// Metadata is signed TUF metadata by file name ("5.root.json",
	// "targets.json", "kernels-3f.json"), each the successor of what the stream has.
	Metadata map[string][]byte `json:"metadata"`
	// Catalogues are the new catalogue files by target path.
	Catalogues map[string][]byte `json:"catalogues,omitempty"`
	// Reason is for the audit log.
	Reason string `json:"reason,omitempty"`
}

// Pending is a change that may still lack signatures. As JSON it is the file that
// goes from one key holder to the next.
type Pending struct {
	Change
	// Root and Targets are the stream's metadata when the change was made; they say
	// whose signatures it needs. Empty for the first change of an empty stream.
	Root    []byte `json:"root,omitempty"`
	Targets []byte `json:"targets,omitempty"`
}

// Missing is a file of a pending change that lacks signatures.
type Missing struct {
	File string `json:"file"`
	// Have counts the signatures that count, Need how many it takes.
	Have int `json:"have"`
	Need int `json:"need"`
	// KeyIDs are the keys that have not signed but may.
	KeyIDs []string `json:"key_ids"`
}

var rootFileRE = regexp.MustCompile(`^([1-9][0-9]{0,8})\.root\.json$`)

// rootVersion is the version in the name of a root file, 0 for another file.
func rootVersion(file string) int64 {
	m := rootFileRE.FindStringSubmatch(file)
	if m == nil {
		return 0
	}
	v, _ := strconv.ParseInt(m[1], 10, 64)
	return v
}

// ParsePending reads a pending file.
func ParsePending(b []byte) (*Pending, error) {
	p := new(Pending)
	if err := json.Unmarshal(b, p); err != nil {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "not a file of pending signatures: %w", err)
	}
	if len(p.Metadata) == 0 {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "not a file of pending signatures: it holds no metadata")
	}
	return p, nil
}

// requirement is one threshold that a file must reach.
type requirement struct {
	keyIDs    []string
	threshold int
}

// Sign adds the signatures that keys can give and returns how many it added. A key
// that no file needs is not used.
func (p *Pending) Sign(keys []Key) (int, error) {
	needs, err := p.requirements()
	if err != nil {
		return 0, err
	}
	added := 0
	for _, file := range slices.Sorted(maps.Keys(needs)) {
		n, err := p.signFile(file, needs[file], keys)
		if err != nil {
			return added, fmt.Errorf("sign %s: %w", file, err)
		}
		added += n
	}
	return added, nil
}

func (p *Pending) signFile(file string, needs []requirement, keys []Key) (n int, err error) {
	unwanted := func(k Key) bool {
		return !slices.ContainsFunc(needs, func(r requirement) bool { return slices.Contains(r.keyIDs, k.ID()) })
	}
	keys = slices.DeleteFunc(slices.Clone(keys), unwanted)
	out := p.Metadata[file]
	if rootVersion(file) > 0 {
		out, n, err = addSignatures[metadata.RootType](out, keys)
	} else {
		out, n, err = addSignatures[metadata.TargetsType](out, keys)
	}
	if err == nil {
		p.Metadata[file] = out
	}
	return n, err
}

// addSignatures signs with the keys that have not signed yet. Without any it
// returns b as it is.
func addSignatures[T metadata.Roles](b []byte, keys []Key) ([]byte, int, error) {
	m, err := parse[T](b)
	if err != nil {
		return nil, 0, err
	}
	n := 0
	for _, k := range keys {
		if slices.Contains(signers(m), k.ID()) {
			continue
		}
		if err := sign(m, k); err != nil {
			return nil, 0, err
		}
		n++
	}
	if n == 0 {
		return b, 0, nil
	}
	out, err := m.ToBytes(false)
	return out, n, err
}

func signers[T metadata.Roles](m *metadata.Metadata[T]) []string {
	ids := make([]string, len(m.Signatures))
	for i, s := range m.Signatures {
		ids[i] = s.KeyID
	}
	return ids
}

// Missing lists the files that lack signatures, none when the change is complete.
// It counts who signed; whether the signatures are good a Publisher checks.
func (p *Pending) Missing() ([]Missing, error) {
	needs, err := p.requirements()
	if err != nil {
		return nil, err
	}
	var out []Missing
	for _, file := range slices.Sorted(maps.Keys(needs)) {
		have, err := p.signersOf(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		for _, need := range needs[file] {
			m := Missing{File: file, Need: need.threshold}
			for _, id := range need.keyIDs {
				if slices.Contains(have, id) {
					m.Have++
				} else {
					m.KeyIDs = append(m.KeyIDs, id)
				}
			}
			if m.Have < m.Need {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

func (p *Pending) signersOf(file string) ([]string, error) {
	if rootVersion(file) > 0 {
		m, err := parse[metadata.RootType](p.Metadata[file])
		if err != nil {
			return nil, err
		}
		return signers(m), nil
	}
	m, err := parse[metadata.TargetsType](p.Metadata[file])
	if err != nil {
		return nil, err
	}
	return signers(m), nil
}

// requirements says whose signatures each file needs: a root those of the root
// before and its own, targets those that the newest root names, a bin those that
// the newest targets names.
func (p *Pending) requirements() (map[string][]requirement, error) {
	signing, delegated, err := p.signingKeys()
	if err != nil {
		return nil, err
	}
	needs := map[string][]requirement{}
	for file := range p.Metadata {
		v := rootVersion(file)
		switch {
		case v > 0:
			if needs[file], err = p.rootRequirements(file, v); err != nil {
				return nil, tufError(file, err)
			}
		case file == "targets.json":
			needs[file] = []requirement{signing}
		case bins().IsDelegatedRole(strings.TrimSuffix(file, ".json")):
			needs[file] = []requirement{delegated}
		default:
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "%q is no file of the stream", file)
		}
	}
	return needs, nil
}

// signingKeys says who signs targets and who signs bins once the change is made.
func (p *Pending) signingKeys() (targets, bins requirement, err error) {
	root, err := p.newestRoot()
	if err != nil {
		return targets, bins, tufError("root.json", err)
	}
	b := p.Metadata["targets.json"]
	if b == nil {
		b = p.Targets
	}
	t, err := parse[metadata.TargetsType](b)
	if err == nil {
		err = checkDelegation(t)
	}
	if err != nil {
		return targets, bins, tufError("targets.json", err)
	}
	d := t.Signed.Delegations.SuccinctRoles
	return roleOf(root, metadata.TARGETS), requirement{d.KeyIDs, d.Threshold}, nil
}

func (p *Pending) rootRequirements(file string, version int64) ([]requirement, error) {
	root, err := parse[metadata.RootType](p.Metadata[file])
	if err != nil {
		return nil, err
	}
	needs := []requirement{roleOf(root, metadata.ROOT)}
	if version == 1 {
		return needs, nil
	}
	before := p.Metadata[fmt.Sprintf("%d.root.json", version-1)]
	if before == nil {
		before = p.Root
	}
	old, err := parse[metadata.RootType](before)
	if err != nil {
		return nil, err
	}
	return append(needs, roleOf(old, metadata.ROOT)), nil
}

// newestRoot is the highest root of the change, else the one it was made on.
func (p *Pending) newestRoot() (*rootMeta, error) {
	b, top := p.Root, int64(0)
	for file := range p.Metadata {
		if v := rootVersion(file); v > top {
			b, top = p.Metadata[file], v
		}
	}
	return parse[metadata.RootType](b)
}

func roleOf(root *rootMeta, role string) requirement {
	r := root.Signed.Roles[role]
	if r == nil {
		return requirement{}
	}
	return requirement{r.KeyIDs, r.Threshold}
}
