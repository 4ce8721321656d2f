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
	added := 0
	for _, file := range slices.Sorted(maps.Keys(p.Metadata)) {
		n, err := p.signFile(file, keys)
		if err != nil {
			return added, fmt.Errorf("sign %s: %w", file, err)
		}
		added += n
	}
	return added, nil
}

func (p *Pending) signFile(file string, keys []Key) (int, error) {
	needs, err := p.requirements(file)
	if err != nil {
		return 0, err
	}
	wanted := func(k Key) bool {
		return slices.ContainsFunc(needs, func(r requirement) bool { return slices.Contains(r.keyIDs, k.ID()) })
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(k Key) bool { return !wanted(k) })
	var out []byte
	var n int
	if rootVersion(file) > 0 {
		out, n, err = addSignatures[metadata.RootType](p.Metadata[file], keys)
	} else {
		out, n, err = addSignatures[metadata.TargetsType](p.Metadata[file], keys)
	}
	if err != nil {
		return 0, err
	}
	p.Metadata[file] = out
	return n, nil
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
	var out []Missing
	for _, file := range slices.Sorted(maps.Keys(p.Metadata)) {
		needs, err := p.requirements(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		have, err := p.signersOf(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		for _, need := range needs {
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

// requirements says whose signatures a file needs: a root those of the root before
// and its own, targets those that the newest root names, a bin those that the
// newest targets names.
func (p *Pending) requirements(file string) ([]requirement, error) {
	if v := rootVersion(file); v > 0 {
		return p.rootRequirements(file, v)
	}
	root, err := p.newestRoot()
	if err != nil {
		return nil, err
	}
	if file == "targets.json" {
		return []requirement{roleOf(root, metadata.TARGETS)}, nil
	}
	if !bins().IsDelegatedRole(strings.TrimSuffix(file, ".json")) {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "%q is no file of the stream", file)
	}
	b := p.Metadata["targets.json"]
	if b == nil {
		b = p.Targets
	}
	targets, err := parse[metadata.TargetsType](b)
	if err != nil {
		return nil, err
	}
	if err := checkDelegation(targets); err != nil {
		return nil, err
	}
	d := targets.Signed.Delegations.SuccinctRoles
	return []requirement{{d.KeyIDs, d.Threshold}}, nil
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
