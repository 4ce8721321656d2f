package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/stream"
)

// Where the server's own keys are in the data folder: those that init made, and the
// pair that is to follow them.
const (
	onlineDir      = "online"
	nextOnlineDir  = "online-next"
	onlineFile     = "online-keys.json"
	nextOnlineFile = "online-keys-next.json"
)

// nextOnlineKeys makes a second pair of online keys. Both pairs are loaded by serve;
// which of them signs, the newest root says. So nothing has to happen at one instant.
func (p *program) nextOnlineKeys() *cobra.Command {
	c := &cobra.Command{
		Use:   "online-keys",
		Short: "Make new snapshot and timestamp keys for the server",
		Long: `Make new snapshot and timestamp keys, for when the present ones may have been
copied. The server goes on with the present ones until a root that names the new
ones is published:

  1. livepatch-server online-keys --data DIR, and restart the server
  2. livepatch-admin keys rotate --online online-keys-next.json

From then on the server signs with the new keys, and the old ones are worth nothing.
The same helps where the present keys are lost.`,
		Example: "  livepatch-server online-keys --data /var/lib/livepatch-server",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			err := p.initialised()
			if err == nil {
				err = p.makeNextOnlineKeys()
			}
			if err != nil {
				return fmt.Errorf("cannot make online keys: %w", err)
			}
			return p.s.Printf("Made new online keys. Restart the server, then, where livepatch-admin runs:\n  livepatch-admin keys rotate --online %s", filepath.Join(p.data, nextOnlineFile))
		},
	}
	c.Flags().StringVar(&p.data, "data", "", "the data folder that init made (or "+envPrefix+"DATA)")
	_ = c.MarkFlagDirname("data")
	return c
}

func (p *program) makeNextOnlineKeys() error {
	dir := filepath.Join(p.data, nextOnlineDir)
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return livepatch.Errorf(livepatch.CodeConflict, "%s is there already. If the newest root names them (livepatch-admin keys show), move it to %s in place of the old pair first; else remove it",
			dir, filepath.Join(p.data, onlineDir))
	} else if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	keys, err := stream.GenerateOnlineKeys(rand.Reader)
	if err != nil {
		return err
	}
	public, err := json.MarshalIndent(keys.Public(), "", "  ")
	if err != nil {
		return fmt.Errorf("encode online keys: %w", err)
	}
	return errors.Join(stream.WriteOnlineKeys(dir, keys), writeFile(filepath.Join(p.data, nextOnlineFile), append(public, '\n'), 0o644))
}

// onlineKeys loads the server's keys and, where there is one, the pair that is to
// follow. Where the keys are lost the pair that follows does alone: with it the server
// can take in the root that names it.
func (p *program) onlineKeys() (keys stream.OnlineKeys, spare []stream.OnlineKeys, err error) {
	keys, err = stream.LoadOnlineKeys(filepath.Join(p.data, onlineDir))
	next := filepath.Join(p.data, nextOnlineDir)
	if _, missing := os.Stat(next); errors.Is(missing, fs.ErrNotExist) {
		if err != nil {
			err = livepatch.Errorf(livepatch.CodeNotFound, "the server's own keys in %s are not usable. Put them back from a backup, or replace them: livepatch-server online-keys --data %s, start the server, then livepatch-admin keys rotate --online %s: %w",
				filepath.Join(p.data, onlineDir), p.data, filepath.Join(p.data, nextOnlineFile), err)
		}
		return keys, nil, err
	}
	follower, nextErr := stream.LoadOnlineKeys(next)
	switch {
	case errors.Is(err, fs.ErrNotExist) && nextErr == nil:
		return follower, nil, nil
	case err == nil && nextErr == nil:
		return keys, []stream.OnlineKeys{follower}, nil
	}
	return keys, nil, errors.Join(err, nextErr)
}
