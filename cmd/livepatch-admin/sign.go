package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

// signedPending is the result of sign.
type signedPending struct {
	// Added is how many signatures were added.
	Added int `json:"added"`
	submission
}

func (p *program) sign() *cobra.Command {
	var dir string
	var offline, review bool
	c := &cobra.Command{
		Use:   "sign PENDING",
		Short: "Add signatures to a change that needs several key holders",
		Long: `Add signatures to a change that another key holder began. The change is held against the stream as it is
now and shown: what it adds, withdraws, or trusts from now on; a change that does anything else is refused.
When it has all signatures it needs, it is published; else the file goes to the next key holder.

With --review it only shows. With --offline it signs what the file says, without a server to compare with.`,
		Example: examples(`
livepatch-admin sign pending-20261123T101500Z.json --review
livepatch-admin sign pending-20261123T101500Z.json`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if offline && review {
				return cli.Usagef(c, "--review needs the server: leave --offline out")
			}
			what := "sign "
			if review {
				what = "review "
			}
			return cannot(what+args[0], p.runSign(c.Context(), args[0], dir, offline, review))
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`FOLDER` with the keys (default the configured one)")
	c.Flags().BoolVar(&offline, "offline", false, "sign without a server, and do not publish")
	c.Flags().BoolVar(&review, "review", false, "show what the change does and stop")
	return c
}

func (p *program) runSign(ctx context.Context, path, dir string, offline, review bool) error {
	b, err := readBounded(path, 64<<20)
	if err != nil {
		return err
	}
	pending, err := stream.ParsePending(b)
	if err != nil {
		return err
	}
	var s *session
	if !offline {
		if s, err = p.connect(); err != nil {
			return err
		}
	}
	// The first change of a stream has nothing to be compared with.
	if !offline && len(pending.Root) > 0 {
		if err := s.review(ctx, p, pending, review); err != nil || review {
			return err
		}
	}
	if dir == "" {
		conf, err := p.config()
		if err != nil {
			return err
		}
		dir = conf.Keys
	}
	keys, err := stream.LoadKeys(dir)
	if err != nil {
		return err
	}
	return p.addSignatures(ctx, s, pending, keys, path)
}

// addSignatures signs, keeps what it signed, and publishes what is complete unless
// s is nil.
func (p *program) addSignatures(ctx context.Context, s *session, pending *stream.Pending, keys []stream.Key, path string) (err error) {
	var out signedPending
	if out.Added, err = pending.Sign(keys); err != nil {
		return err
	}
	if out.Missing, err = pending.Missing(); err != nil {
		return err
	}
	// The signatures are kept first: publishing may fail.
	if out.Pending, err = p.writePending(pending, path); err != nil {
		return err
	}
	if s != nil && len(out.Missing) == 0 {
		if out.submission, err = s.push(ctx, p, pending, path); err != nil {
			return err
		}
		_ = os.Remove(path) // published: there is no next key holder
	}
	return p.print(out, func() error {
		if err := p.s.Printf("Added %s.", cli.Count(out.Added, "signature")); err != nil {
			return err
		}
		if len(out.Missing) == 0 && !out.Published {
			return p.s.Printf("%s is complete; publish it with: livepatch-admin sign %s", path, path)
		}
		return p.tell(out.submission, "Published: "+pending.Reason+".")
	})
}

// reviewed is the result of sign --review.
type reviewed struct {
	Reason string `json:"reason"`
	stream.Review
	Missing []stream.Missing `json:"missing"`
}

// review holds the change against the stream and shows what it does. As JSON it is
// shown only when it is all that was asked for.
func (s *session) review(ctx context.Context, p *program, pending *stream.Pending, only bool) error {
	kernels, err := pending.Kernels()
	if err != nil {
		return err
	}
	r, err := s.reader(ctx, p)
	if err != nil {
		return err
	}
	view, err := r.View(ctx, s.fetcher, kernels...)
	if err != nil {
		return s.explain(ctx, err)
	}
	out := reviewed{Reason: pending.Reason}
	if out.Review, err = view.Review(pending); err != nil {
		return err
	}
	if out.Missing, err = pending.Missing(); err != nil {
		return err
	}
	if p.json && !only {
		return nil
	}
	return p.print(out, func() error { return p.writeReview(out) })
}

func (p *program) writeReview(r reviewed) error {
	t := details()
	t.Row("change", r.Reason)
	for _, a := range r.Added {
		t.Row("adds", fmt.Sprintf("%s %s: module %s (sha256 %s), fixes %s", a.Kernel, a.Livepatch.Version, a.Livepatch.Module.Name, a.Livepatch.Module.SHA256, fixList(a.Livepatch.Fixes)))
	}
	for _, w := range r.Withdrawn {
		t.Row("withdraws", fmt.Sprintf("%s %s: %s", w.Kernel, w.Livepatch.Version, w.Livepatch.Withdrawn.Reason))
	}
	if k := r.Keys; k != nil {
		t.Row("trusts from now on", fmt.Sprintf("%d of %s, %d of %s", k.RootThreshold, cli.Count(len(k.Root), "root key"), k.SigningThreshold, cli.Count(len(k.Signing), "signing key")))
		for _, key := range k.Root {
			t.Row("root key", key.ID())
		}
		for _, key := range k.Signing {
			t.Row("signing key", key.ID())
		}
	}
	if r.Renewed > 0 {
		t.Row("signs anew, unchanged", cli.Count(r.Renewed, "file"))
	}
	for _, m := range r.Missing {
		t.Row("missing", m.File+": "+cli.Count(m.Need-m.Have, "signature"))
	}
	return t.Write(p.s)
}
