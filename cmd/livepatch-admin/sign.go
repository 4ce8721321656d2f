package main

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"

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
	var push, review bool
	c := &cobra.Command{
		Use:   "sign PENDING",
		Short: "Add signatures to a change that needs several key holders",
		Long: `Add signatures to a change that another key holder began. When it has all it needs, it is published;
else the file goes to the next key holder. With --review nothing is signed: it shows what would be.

Signing itself needs no server: with --offline the file is only written back.`,
		Example: examples(`
livepatch-admin sign pending-20261123T101500Z.json --review
livepatch-admin sign pending-20261123T101500Z.json`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return cannot("sign "+args[0], p.runSign(c.Context(), args[0], dir, !push, review))
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`FOLDER` with the keys (default the configured one)")
	c.Flags().BoolVar(&push, "offline", false, "do not publish, even when nothing is missing any more")
	c.Flags().BoolVar(&review, "review", false, "show what the change does and stop")
	return c
}

func (p *program) runSign(ctx context.Context, path, dir string, publish, review bool) error {
	b, err := readBounded(path, 64<<20)
	if err != nil {
		return err
	}
	pending, err := stream.ParsePending(b)
	if err != nil {
		return err
	}
	if review {
		return p.review(pending)
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
	if publish && len(out.Missing) == 0 {
		s, err := p.connect()
		if err != nil {
			return err
		}
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

// review shows what a change does, as its own bytes say.
func (p *program) review(pending *stream.Pending) error {
	summary, err := pending.Summary()
	if err != nil {
		return err
	}
	missing, err := pending.Missing()
	if err != nil {
		return err
	}
	return p.print(map[string]any{"reason": pending.Reason, "files": slices.Sorted(maps.Keys(pending.Metadata)), "catalogues": summary, "missing": missing}, func() error {
		t := details()
		t.Row("change", pending.Reason)
		t.Row("files", strings.Join(slices.Sorted(maps.Keys(pending.Metadata)), " "))
		for _, cat := range summary {
			for _, lp := range cat.Patches {
				state := "carries"
				if lp.Withdrawn != nil {
					state = "withdrawn: " + lp.Withdrawn.Reason
				}
				t.Row(cat.Kernel.String(), lp.Version.String()+" "+lp.Module.Name+" "+lp.Module.SHA256[:12]+" "+fixList(lp.Fixes)+" "+state)
			}
		}
		for _, m := range missing {
			t.Row("missing", m.File+": "+cli.Count(m.Need-m.Have, "signature"))
		}
		return t.Write(p.s)
	})
}
