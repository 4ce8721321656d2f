package main

import (
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

// shownKeys is the result of keys show.
type shownKeys struct {
	Trust       string               `json:"trust"`
	Trusted     string               `json:"trusted"`
	RootVersion int64                `json:"root_version"`
	Keys        []shownKey           `json:"keys"`
	Expires     map[string]time.Time `json:"expires"`
}

type shownKey struct {
	Role      string `json:"role"`
	ID        string `json:"id"`
	Threshold int    `json:"threshold"`
	// Here tells that the private key is in the configured folder.
	Here bool `json:"here"`
}

func (p *program) keysShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show",
		Short:   "Show which keys the stream trusts, which are here, and what expires when",
		Example: examples(`livepatch-admin keys show`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("show keys", err)
			}
			r, err := s.reader(c.Context(), p)
			if err != nil {
				return cannot("show keys", err)
			}
			view, err := r.View(c.Context(), s.fetcher)
			if err != nil {
				return cannot("show keys", s.explain(c.Context(), err))
			}
			got, err := s.shown(r, view)
			if err != nil {
				return cannot("show keys", err)
			}
			return p.print(got, func() error { return p.writeKeys(got) })
		},
	}
}

func (s *session) shown(r *stream.Reader, view *stream.View) (shownKeys, error) {
	set, err := view.Keys()
	if err != nil {
		return shownKeys{}, err
	}
	here := map[string]bool{}
	// A folder without keys is no failure here: it only means that none is here.
	if keys, err := stream.LoadKeys(s.Keys); err == nil {
		for _, k := range keys {
			here[k.ID()] = true
		}
	}
	out := shownKeys{RootVersion: view.RootVersion(), Expires: view.Expiries()}
	out.Trust, out.Trusted = r.First()
	add := func(role string, threshold int, keys ...stream.PublicKey) {
		for _, k := range keys {
			out.Keys = append(out.Keys, shownKey{role, k.ID(), threshold, here[k.ID()]})
		}
	}
	add("root", set.RootThreshold, set.Root...)
	add("signing", set.SigningThreshold, set.Signing...)
	add("snapshot", 1, set.Online.Snapshot)
	add("timestamp", 1, set.Online.Timestamp)
	return out, nil
}

func (p *program) writeKeys(got shownKeys) error {
	if err := p.s.Printf("Trust begins with %s (%s).\n", got.Trust, got.Trusted); err != nil {
		return err
	}
	t := cli.NewTable("role", "key", "threshold", "here")
	for _, k := range got.Keys {
		t.Row(k.Role, k.ID, cli.Count(k.Threshold, "signature"), yesNo(k.Here))
	}
	if err := t.Write(p.s); err != nil {
		return err
	}
	if err := p.s.Printf(""); err != nil {
		return err
	}
	e := cli.NewTable("file", "expires", "")
	for _, role := range []string{"root", "targets", "bins", "snapshot", "timestamp"} {
		if at, ok := got.Expires[role]; ok {
			e.Row(role, cli.Time(at), cli.Age(at, p.now()))
		}
	}
	return e.Write(p.s)
}
