package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
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
and of the new ones, and what was published is signed anew. Keys are named by the beginning of their id.`,
		Example: examples(`
# A signing key was lost or stolen
livepatch-admin keys show
livepatch-admin keys rotate --replace 3b1f09c2

# From now on two people must sign what is published
livepatch-admin keys rotate --add-signing 1 --signing-threshold 2`),
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
	fl.StringVar(&f.online, "online", "", "trust the server's keys in this `FILE`, its new online-keys.json, in the place of its old ones")
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
	fresh, err := p.changeKeys(&set, f)
	if err != nil {
		return err
	}
	if err := set.Validate(); err != nil {
		return err
	}
	// The new keys are on disk before anything trusts them.
	for _, k := range fresh {
		if err := writeNextKey(s.Keys, k.role, k.Key); err != nil {
			return err
		}
	}
	version := view.RootVersion()
	return p.rotate(ctx, fmt.Sprintf("Rotated keys: root %d is in force.", version+1), func(v *stream.View) (*stream.Pending, error) {
		if v.RootVersion() != version {
			return nil, livepatch.Errorf(livepatch.CodeConflict, "somebody else changed the keys meanwhile; look with 'keys show' and begin again")
		}
		return v.Rotate(set, "rotate keys", stream.Lifetimes{}, p.now())
	})
}

// freshKey is a new key and the role it is for, as in its file's name.
type freshKey struct {
	stream.Key
	role string
}

// changeKeys applies the flags to the set and returns the keys it made.
func (p *program) changeKeys(set *stream.KeySet, f rotateFlags) ([]freshKey, error) {
	var fresh []freshKey
	mint := func(role string) (stream.PublicKey, error) {
		k, err := stream.GenerateKey(p.random)
		fresh = append(fresh, freshKey{k, role})
		return k.Public(), err
	}
	for _, id := range f.replace {
		role, keys, i, err := findKey(set, id)
		if err != nil {
			return nil, err
		}
		if (*keys)[i], err = mint(role); err != nil {
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
			k, err := mint(add.role)
			if err != nil {
				return nil, err
			}
			*add.keys = append(*add.keys, k)
		}
	}
	if f.online != "" {
		b, err := readBounded(f.online, 4<<10)
		if err != nil {
			return nil, err
		}
		if set.Online, err = stream.ParseOnlinePublic(b); err != nil {
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

// writeNextKey writes a key under the first free number of its role.
func writeNextKey(dir, role string, k stream.Key) error {
	for n := 1; ; n++ {
		path := filepath.Join(dir, fmt.Sprintf("%s-%d.pem", role, n))
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return stream.WriteKey(path, k)
		} else if err != nil {
			return err
		}
	}
}
