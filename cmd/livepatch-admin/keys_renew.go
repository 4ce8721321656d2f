package main

import (
	"context"

	"github.com/spf13/cobra"

	"livepatch/internal/stream"
)

func (p *program) keysRenew() *cobra.Command {
	return &cobra.Command{
		Use:   "renew",
		Short: "Sign root and the list of kernels anew before they expire",
		Long: `Sign root, targets and all bins anew, for another year. Do it before they expire ('keys show' says when):
machines refuse a stream that has expired.`,
		Example: examples(`livepatch-admin keys renew`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return cannot("renew", p.rotate(c.Context(), "Renewed root, targets and all bins.", func(v *stream.View) (*stream.Pending, error) {
				return v.Renew("renew", stream.Lifetimes{}, p.now())
			}))
		},
	}
}

// rotate submits a change of the whole stream.
func (p *program) rotate(ctx context.Context, done string, change func(*stream.View) (*stream.Pending, error)) error {
	progress := p.s.Progress("signing the stream anew")
	defer progress.Stop()
	s, err := p.connect()
	if err != nil {
		return err
	}
	sub, err := s.submit(ctx, p, nil, change)
	progress.Stop()
	if err != nil {
		return err
	}
	return p.print(sub, func() error { return p.tell(sub, done) })
}
