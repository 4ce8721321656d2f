package main

import (
	"context"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch/internal/stream"
)

func (p *program) keysPush() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "push",
		Short: "Send the first root to a server whose stream is empty",
		Long: `Send what 'keys create' made, without the private keys, to a server whose stream is empty. Where the
keys are spread over several people, each runs 'livepatch-admin sign' on the pending file first.`,
		Example: examples(`livepatch-admin keys push --dir keys`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return cannot("push keys", p.pushKeys(c.Context(), dir))
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`FOLDER` that 'keys create' made (default the configured one)")
	return c
}

func (p *program) pushKeys(ctx context.Context, dir string) error {
	s, err := p.connect()
	if err != nil {
		return err
	}
	if dir == "" {
		dir = s.Keys
	}
	path := filepath.Join(dir, pendingKeys)
	b, err := readBounded(path, 64<<20)
	if err != nil {
		return err
	}
	pending, err := stream.ParsePending(b)
	if err != nil {
		return err
	}
	sub, err := s.push(ctx, p, pending, path)
	if err != nil {
		return err
	}
	trust := stream.Fingerprint(pending.Metadata[firstRoot])
	return p.print(map[string]any{"trust": trust, "published": sub.Published, "missing": sub.Missing}, func() error {
		return p.tell(sub, "The stream begins with root "+trust+". Machines can enrol now.")
	})
}
