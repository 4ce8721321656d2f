package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

// pendingKeys is the file in the folder of keys that holds what keys push sends.
const pendingKeys = "first.pending.json"

// createFlags are the flags of keys create.
type createFlags struct {
	dir, online               string
	roots, rootThreshold      int
	signing, signingThreshold int
}

// createdKeys is the result of keys create.
type createdKeys struct {
	Dir   string `json:"dir"`
	Trust string `json:"trust"`
}

func (p *program) keysCreate() *cobra.Command {
	var f createFlags
	c := &cobra.Command{
		Use:   "create --dir FOLDER --online online-keys.json",
		Short: "Make root and signing keys for an empty stream",
		Long: `Make root and signing keys and the first root, which also names the keys of the server in
online-keys.json. Needs no server; 'keys push' sends the result to it. No private key leaves the folder:
put it on a medium that can be taken away, and copies of each key where their holders are.`,
		Example: examples(`
# One person
livepatch-admin keys create --dir keys --online online-keys.json

# Two of three people for anything that changes trust, one for publishing
livepatch-admin keys create --dir keys --online online-keys.json --root-keys 3 --root-threshold 2`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.dir == "" || f.online == "" {
				return cli.Usagef(c, "both --dir and --online are needed")
			}
			got, err := p.createKeys(f)
			if err != nil {
				return cannot("create keys", err)
			}
			return p.print(got, func() error {
				return p.s.Printf("Made %s and %s in %s.\nTrust in the stream begins with %s\n\nSend them to the server with:\n\n  livepatch-admin keys push --dir %s",
					cli.Count(f.roots, "root key"), cli.Count(f.signing, "signing key"), f.dir, got.Trust, f.dir)
			})
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.dir, "dir", "", "`FOLDER` to make them in; made if missing")
	fl.StringVar(&f.online, "online", "", "`FILE` with the server's public keys, from 'livepatch-server init --offline-keys'")
	fl.IntVar(&f.roots, "root-keys", 1, "how many root keys")
	fl.IntVar(&f.rootThreshold, "root-threshold", 1, "how many of them must sign")
	fl.IntVar(&f.signing, "signing-keys", 1, "how many signing keys")
	fl.IntVar(&f.signingThreshold, "signing-threshold", 1, "how many of them must sign")
	return c
}

func (p *program) createKeys(f createFlags) (createdKeys, error) {
	b, err := readBounded(f.online, 4<<10)
	if err != nil {
		return createdKeys{}, err
	}
	online, err := stream.ParseOnlinePublic(b)
	if err != nil {
		return createdKeys{}, err
	}
	if _, err := os.Stat(filepath.Join(f.dir, firstRoot)); err == nil {
		return createdKeys{}, livepatch.Errorf(livepatch.CodeConflict, "%s holds a root already; use another folder", f.dir)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return createdKeys{}, err
	}
	set := stream.KeySet{RootThreshold: f.rootThreshold, SigningThreshold: f.signingThreshold, Online: online}
	roots, err1 := p.newKeys(f.roots)
	signing, err2 := p.newKeys(f.signing)
	if err := errors.Join(err1, err2); err != nil {
		return createdKeys{}, err
	}
	set.Root, set.Signing = public(roots), public(signing)
	keys := append(roots, signing...)
	pending, err := stream.Create(set, keys, stream.Lifetimes{}, p.now())
	if err != nil {
		return createdKeys{}, err
	}
	// Keys first: a root without its keys would be worth nothing.
	for i, k := range keys {
		name := fmt.Sprintf("root-%d.pem", i+1)
		if i >= len(roots) {
			name = fmt.Sprintf("signing-%d.pem", i-len(roots)+1)
		}
		if err := stream.WriteKey(filepath.Join(f.dir, name), k); err != nil {
			return createdKeys{}, err
		}
	}
	if b, err = json.Marshal(pending); err != nil {
		return createdKeys{}, err
	}
	root := pending.Metadata[firstRoot]
	err = errors.Join(
		os.WriteFile(filepath.Join(f.dir, pendingKeys), b, 0o600),
		os.WriteFile(filepath.Join(f.dir, firstRoot), root, 0o644))
	return createdKeys{f.dir, stream.Fingerprint(root)}, err
}

func (p *program) newKeys(n int) ([]stream.Key, error) {
	var keys []stream.Key
	for range n {
		k, err := stream.GenerateKey(p.random)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func public(keys []stream.Key) []stream.PublicKey {
	out := make([]stream.PublicKey, len(keys))
	for i, k := range keys {
		out[i] = k.Public()
	}
	return out
}
