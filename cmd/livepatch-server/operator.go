package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/store"
)

// newCredential makes an operator's credential: 256 random bits in hex.
func newCredential() string {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails (crypto/rand)
	return hex.EncodeToString(secret[:])
}

var operatorNameRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

func (p *program) operator() *cobra.Command {
	c := &cobra.Command{
		Use:   "operator",
		Short: "Say who may operate the server",
		Long: `Say who may operate the server: give each person a credential of their own, whose
name the audit log shows, and replace one that was lost or leaked. This works on
the data folder itself, whether the server runs or not, so that nobody can lock
themselves out.`,
		Example: `  livepatch-server operator create ann --data /var/lib/livepatch-server

  # Lost or leaked: end it and make another
  livepatch-server operator remove ann --data /var/lib/livepatch-server
  livepatch-server operator create ann --data /var/lib/livepatch-server`,
	}
	create := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make an operator and print the credential, this once",
		Example: "  livepatch-server operator create ann --data /var/lib/livepatch-server",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.withStore(c.Context(), "create operator", func(db *store.Store) error { return p.createOperator(c.Context(), db, args[0]) })
		},
	}
	remove := &cobra.Command{
		Use:     "remove NAME",
		Short:   "End an operator's credential",
		Example: "  livepatch-server operator remove ann --data /var/lib/livepatch-server",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return p.withStore(c.Context(), "remove operator", func(db *store.Store) error {
				if err := db.RemoveOperator(c.Context(), "data folder", args[0]); err != nil {
					return err
				}
				return p.s.Printf("Removed operator %s; the credential is void within a minute.", args[0])
			})
		},
	}
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the operators",
		Example: "  livepatch-server operator list --data /var/lib/livepatch-server",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.withStore(c.Context(), "list operators", func(db *store.Store) error { return p.listOperators(c.Context(), db) })
		},
	}
	for _, sub := range []*cobra.Command{create, list, remove} {
		sub.Flags().StringVar(&p.data, "data", "", "the data folder that init made (or "+envPrefix+"DATA)")
		_ = sub.MarkFlagDirname("data")
		c.AddCommand(sub)
	}
	return c
}

// withStore opens the database of the data folder for f.
func (p *program) withStore(ctx context.Context, what string, f func(*store.Store) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot %s: %w", what, err)
		}
	}()
	env, err := p.environment()
	if err != nil {
		return err
	}
	if p.data == "" {
		p.data = env["data"]
	}
	if err := p.initialised(); err != nil {
		return err
	}
	db, err := store.OpenSQLite(ctx, filepath.Join(p.data, "server.db"), p.now)
	if err != nil {
		return err
	}
	return errors.Join(f(db), db.Close())
}

func (p *program) createOperator(ctx context.Context, db *store.Store, name string) error {
	if !operatorNameRE.MatchString(name) {
		return livepatch.Errorf(livepatch.CodeInvalid, "operator name %q is not 1 to 64 letters, digits and ._@-", name)
	}
	credential := newCredential()
	if err := db.AddOperator(ctx, "data folder", name, credential); err != nil {
		return err
	}
	return p.s.Printf("%s\n\nThe credential of %s is shown this once. It goes into their admin.yaml, as token.", credential, name)
}

func (p *program) listOperators(ctx context.Context, db *store.Store) error {
	operators, err := db.Operators(ctx)
	if err != nil {
		return err
	}
	t := cli.NewTable("NAME", "SINCE")
	for _, o := range operators {
		t.Row(o.Name, cli.Time(o.Created))
	}
	return t.Write(p.s)
}
