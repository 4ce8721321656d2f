package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

// rotateFlags are the flags of keys rotate; 0 keeps a threshold.
type rotateFlags struct {
	replace, remove                 []string
	addRoot, addSigning             int
	online                          string
	rootThreshold, signingThreshold int
}

func (f rotateFlags) empty() bool {
	return len(f.replace)+len(f.remove)+f.addRoot+f.addSigning+f.rootThreshold+f.signingThreshold == 0 && f.online == ""
}

func (p *program) keysRotate() *cobra.Command {
	var f rotateFlags
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace, add or remove keys, or change how many must sign",
		Long: `Replace, add or remove root and signing keys, or change how many of them must sign. New keys are made in
the configured folder. Machines follow by themselves: the new root is signed by enough of the old root keys
and of the new ones, and what was published is signed anew. Keys are named by the beginning of their id,
their files as well. A key that is for somebody else is yours to hand over, and to delete here.`,
		Example: examples(`
# A signing key was lost or stolen
livepatch-admin keys show
livepatch-admin keys rotate --replace 3b1f09c2

# From now on two people must sign what is published
livepatch-admin keys rotate --add-signing 1 --signing-threshold 2

# The server's keys may have been copied: after 'livepatch-server online-keys' and a restart
livepatch-admin keys rotate --online online-keys-next.json`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.empty() {
				return cli.Usagef(c, "say what to change; 'livepatch-admin keys show' lists the keys")
			}
			return cannot("rotate keys", p.runRotate(c.Context(), f))
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&f.replace, "replace", nil, "put a new key in the place of the one with this `ID`; may be repeated")
	fl.StringArrayVar(&f.remove, "remove", nil, "trust the key with this `ID` no more; may be repeated")
	fl.IntVar(&f.addRoot, "add-root", 0, "add so many new root keys")
	fl.IntVar(&f.addSigning, "add-signing", 0, "add so many new signing keys")
	fl.StringVar(&f.online, "online", "", "trust the server's keys in this `FILE`, its online-keys-next.json, in the place of its old ones")
	fl.IntVar(&f.rootThreshold, "root-threshold", 0, "how many root keys must sign from now on")
	fl.IntVar(&f.signingThreshold, "signing-threshold", 0, "how many signing keys must sign from now on")
	return c
}

func (p *program) runRotate(ctx context.Context, f rotateFlags) error {
	s, err := p.connect()
	if err != nil {
		return err
	}
	r, err := s.reader(ctx, p)
	if err != nil {
		return err
	}
	view, err := r.View(ctx, s.fetcher)
	if err != nil {
		return s.explain(ctx, err)
	}
	set, err := view.Keys()
	if err != nil {
		return err
	}
	before := set
	before.Root, before.Signing = slices.Clone(set.Root), slices.Clone(set.Signing)
	fresh, err := p.changeKeys(&set, f)
	if err != nil {
		return err
	}
	if err := set.Validate(); err != nil {
		return err
	}
	out := rotatedKeys{Changes: keyChanges(before, set)}
	if len(out.Changes) == 0 {
		return livepatch.Errorf(livepatch.CodeInvalid, "these keys and thresholds are in force already; 'livepatch-admin keys show' lists them")
	}
	// The new keys are on disk before anything trusts them.
	for _, k := range fresh {
		path := filepath.Join(s.Keys, fmt.Sprintf("%s-%s.pem", k.role, shortID(k.Public())))
		if err := stream.WriteKey(path, k.Key); err != nil {
			return err
		}
		out.New = append(out.New, newKeyFile{path, k.role, k.insteadOf})
	}
	version := view.RootVersion()
	out.submission, err = s.submit(ctx, p, nil, func(v *stream.View) (*stream.Pending, error) {
		if v.RootVersion() != version {
			return nil, livepatch.Errorf(livepatch.CodeConflict, "somebody else changed the keys meanwhile; look with 'keys show' and begin again")
		}
		return v.Rotate(set, "rotate keys", stream.Lifetimes{}, p.now())
	})
	if err != nil {
		return err
	}
	return p.print(out, func() error {
		return errors.Join(p.tell(out.submission, fmt.Sprintf("Rotated keys: root %d is in force.", version+1)), out.write(p))
	})
}

// rotatedKeys is the result of keys rotate.
type rotatedKeys struct {
	// Changes are sentences: what is trusted otherwise than before.
	Changes []string     `json:"changes"`
	New     []newKeyFile `json:"new_keys,omitempty"`
	submission
}

// newKeyFile is where a new private key is, and the id of the key it replaces.
type newKeyFile struct {
	Path      string `json:"path"`
	Role      string `json:"role"`
	InsteadOf string `json:"instead_of,omitempty"`
}

func (r rotatedKeys) write(p *program) error {
	errs := []error{p.s.Printf("What changes:")}
	for _, change := range r.Changes {
		errs = append(errs, p.s.Printf("  %s", change))
	}
	for _, k := range r.New {
		whose := fmt.Sprintf("the person who is to hold this %s key", k.Role)
		if k.InsteadOf != "" {
			whose = "the person who held " + k.InsteadOf
		}
		errs = append(errs, p.s.Printf("Unless it is your own, hand %s to %s, and delete your copy.", k.Path, whose))
	}
	return errors.Join(errs...)
}

// keyChanges says how now differs from before, nothing when it does not.
func keyChanges(before, now stream.KeySet) []string {
	var changes []string
	for _, r := range []struct {
		role        string
		was, is     []stream.PublicKey
		before, now int
	}{
		{"root key", before.Root, now.Root, before.RootThreshold, now.RootThreshold},
		{"signing key", before.Signing, now.Signing, before.SigningThreshold, now.SigningThreshold},
		{"snapshot key", []stream.PublicKey{before.Online.Snapshot}, []stream.PublicKey{now.Online.Snapshot}, 1, 1},
		{"timestamp key", []stream.PublicKey{before.Online.Timestamp}, []stream.PublicKey{now.Online.Timestamp}, 1, 1},
	} {
		for _, k := range r.was {
			if !slices.Contains(r.is, k) {
				changes = append(changes, fmt.Sprintf("%s %s is trusted no more", r.role, shortID(k)))
			}
		}
		for _, k := range r.is {
			if !slices.Contains(r.was, k) {
				changes = append(changes, fmt.Sprintf("%s %s is trusted", r.role, shortID(k)))
			}
		}
		if r.before != r.now {
			changes = append(changes, fmt.Sprintf("%d of %s must sign, not %d", r.now, cli.Count(len(r.is), r.role), r.before))
		}
	}
	return changes
}

// shortID is the beginning of a key's id by which people name it.
func shortID(k stream.PublicKey) string { return k.ID()[:8] }

// freshKey is a new key, the role it is for, as in its file's name, and the
// beginning of the id of the key in whose place it comes.
type freshKey struct {
	stream.Key
	role      string
	insteadOf string
}

// changeKeys applies the flags to the set and returns the keys it made.
func (p *program) changeKeys(set *stream.KeySet, f rotateFlags) ([]freshKey, error) {
	var fresh []freshKey
	mint := func(role, insteadOf string) (stream.PublicKey, error) {
		k, err := stream.GenerateKey(p.random)
		fresh = append(fresh, freshKey{k, role, insteadOf})
		return k.Public(), err
	}
	for _, id := range f.replace {
		role, keys, i, err := findKey(set, id)
		if err != nil {
			return nil, err
		}
		if (*keys)[i], err = mint(role, shortID((*keys)[i])); err != nil {
			return nil, err
		}
	}
	for _, id := range f.remove {
		_, keys, i, err := findKey(set, id)
		if err != nil {
			return nil, err
		}
		*keys = slices.Delete(*keys, i, i+1)
	}
	for _, add := range []struct {
		role string
		n    int
		keys *[]stream.PublicKey
	}{{"root", f.addRoot, &set.Root}, {"signing", f.addSigning, &set.Signing}} {
		for range add.n {
			k, err := mint(add.role, "")
			if err != nil {
				return nil, err
			}
			*add.keys = append(*add.keys, k)
		}
	}
	if f.online != "" {
		if err := changeOnline(set, f.online); err != nil {
			return nil, err
		}
	}
	if f.rootThreshold > 0 {
		set.RootThreshold = f.rootThreshold
	}
	if f.signingThreshold > 0 {
		set.SigningThreshold = f.signingThreshold
	}
	return fresh, nil
}

// changeOnline takes the server's keys from a file, which must name other ones.
func changeOnline(set *stream.KeySet, path string) error {
	b, err := readBounded(path, 4<<10)
	if err != nil {
		return err
	}
	online, err := stream.ParseOnlinePublic(b)
	if err != nil {
		return err
	}
	if online == set.Online {
		return livepatch.Errorf(livepatch.CodeInvalid, "the keys in %s are the server's keys in force already; did you mean online-keys-next.json, which 'livepatch-server online-keys' makes?", path)
	}
	set.Online = online
	return nil
}

// findKey finds the one key whose id begins with id.
func findKey(set *stream.KeySet, id string) (role string, keys *[]stream.PublicKey, index int, err error) {
	found := 0
	for _, r := range []struct {
		role string
		keys *[]stream.PublicKey
	}{{"root", &set.Root}, {"signing", &set.Signing}} {
		for i, k := range *r.keys {
			if strings.HasPrefix(k.ID(), strings.ToLower(id)) {
				role, keys, index = r.role, r.keys, i
				found++
			}
		}
	}
	switch {
	case id == "" || found == 0:
		err = livepatch.Errorf(livepatch.CodeNotFound, "no root or signing key has an id that begins with %q; 'livepatch-admin keys show' lists them", id)
	case found > 1:
		err = livepatch.Errorf(livepatch.CodeInvalid, "%d keys have an id that begins with %q; give more of it", found, id)
	}
	return role, keys, index, err
}
