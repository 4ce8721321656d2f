package stream

import (
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// KeySet says whose signatures the stream trusts.
type KeySet struct {
	// Root keys sign roots, RootThreshold of them each; Signing keys sign what is
	// published, SigningThreshold of them each. At least one key and a threshold
	// between 1 and the number of keys; a key has one purpose.
	Root             []PublicKey `json:"root"`
	RootThreshold    int         `json:"root_threshold"`
	Signing          []PublicKey `json:"signing"`
	SigningThreshold int         `json:"signing_threshold"`
	// Online are the server's keys.
	Online OnlinePublic `json:"online"`
}

// Validate says what is wrong with the set.
func (s KeySet) Validate() error {
	for _, r := range []struct {
		name      string
		keys      []PublicKey
		threshold int
	}{{"root", s.Root, s.RootThreshold}, {"signing", s.Signing, s.SigningThreshold}} {
		if r.threshold < 1 || r.threshold > len(r.keys) {
			return livepatch.Errorf(livepatch.CodeInvalid, "the threshold of %s keys is %d, which is outside 1 to their number, %d", r.name, r.threshold, len(r.keys))
		}
	}
	seen := map[PublicKey]bool{}
	for _, k := range slices.Concat(s.Root, s.Signing, []PublicKey{s.Online.Snapshot, s.Online.Timestamp}) {
		if k == (PublicKey{}) {
			return livepatch.Errorf(livepatch.CodeInvalid, "a public key is missing")
		}
		if seen[k] {
			return livepatch.Errorf(livepatch.CodeInvalid, "key %s has two purposes; each needs a key of its own", k.ID())
		}
		seen[k] = true
	}
	return nil
}

// Create makes the first metadata of an empty stream: root, targets and the empty
// bins, signed with keys as far as they reach; Missing tells what is left.
func Create(set KeySet, keys []Key, life Lifetimes, now time.Time) (*Pending, error) {
	if err := set.Validate(); err != nil {
		return nil, err
	}
	life = life.withDefaults()
	root := metadata.Root(expiry(now, life.Root))
	if err := setRootKeys(root, set); err != nil {
		return nil, err
	}
	targets := metadata.Targets(expiry(now, life.Targets))
	if err := setDelegation(targets, set); err != nil {
		return nil, err
	}
	p := &Pending{Change: Change{Metadata: map[string][]byte{}, Reason: "first keys of the stream"}}
	if err := put(p, "1.root.json", root); err != nil {
		return nil, err
	}
	if err := put(p, "targets.json", targets); err != nil {
		return nil, err
	}
	for _, name := range bins().GetRoles() {
		if err := put(p, name+".json", metadata.Targets(expiry(now, life.Targets))); err != nil {
			return nil, err
		}
	}
	_, err := p.Sign(keys)
	return p, err
}

// put adds a file to a change, without signatures.
func put[T metadata.Roles](p *Pending, file string, m *metadata.Metadata[T]) error {
	m.ClearSignatures()
	b, err := m.ToBytes(false)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	p.Metadata[file] = b
	return nil
}

// setRootKeys makes root trust exactly the keys of set.
func setRootKeys(root *rootMeta, set KeySet) error {
	root.Signed.Keys = map[string]*metadata.Key{}
	for role, r := range map[string]struct {
		keys      []PublicKey
		threshold int
	}{
		metadata.ROOT:      {set.Root, set.RootThreshold},
		metadata.TARGETS:   {set.Signing, set.SigningThreshold},
		metadata.SNAPSHOT:  {[]PublicKey{set.Online.Snapshot}, 1},
		metadata.TIMESTAMP: {[]PublicKey{set.Online.Timestamp}, 1},
	} {
		root.Signed.Roles[role] = &metadata.Role{KeyIDs: []string{}, Threshold: r.threshold}
		for _, k := range r.keys {
			if err := root.Signed.AddKey(k.tuf(), role); err != nil {
				return fmt.Errorf("add key to root: %w", err)
			}
		}
	}
	return nil
}

// setDelegation makes targets delegate to the bins under the signing keys of set.
func setDelegation(targets *targetsMeta, set KeySet) error {
	roles := bins()
	roles.KeyIDs, roles.Threshold = []string{}, set.SigningThreshold
	targets.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, SuccinctRoles: roles}
	for _, k := range set.Signing {
		if err := targets.Signed.AddKey(k.tuf(), ""); err != nil {
			return fmt.Errorf("add key to targets: %w", err)
		}
	}
	return nil
}

// keySet reads the set back out of a root.
func keySet(root *rootMeta) (KeySet, error) {
	var set KeySet
	var err error
	get := func(role string) []PublicKey {
		var keys []PublicKey
		for _, id := range roleOf(root, role).keyIDs {
			var p PublicKey
			k := root.Signed.Keys[id]
			if k == nil || k.Type != metadata.KeyTypeEd25519 || p.UnmarshalText([]byte(k.Value.PublicKey)) != nil {
				err = livepatch.Errorf(livepatch.CodeMetadata, "root %d has a key for %s that is not ed25519", root.Signed.Version, role)
				continue
			}
			keys = append(keys, p)
		}
		return keys
	}
	set.Root, set.RootThreshold = get(metadata.ROOT), roleOf(root, metadata.ROOT).threshold
	set.Signing, set.SigningThreshold = get(metadata.TARGETS), roleOf(root, metadata.TARGETS).threshold
	snapshot, timestamp := get(metadata.SNAPSHOT), get(metadata.TIMESTAMP)
	if err == nil && (len(snapshot) != 1 || len(timestamp) != 1) {
		err = livepatch.Errorf(livepatch.CodeMetadata, "root %d does not have one snapshot and one timestamp key", root.Signed.Version)
	}
	if err != nil {
		return set, err
	}
	set.Online = OnlinePublic{Snapshot: snapshot[0], Timestamp: timestamp[0]}
	return set, nil
}
