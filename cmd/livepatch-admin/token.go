package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"livepatch/internal/api"
	"livepatch/internal/cli"
)

func (p *program) token() *cobra.Command {
	return group("token", "Make, list and revoke account tokens, with which machines enrol",
		p.tokenCreate(), p.tokenList(), p.tokenRevoke())
}

func (p *program) tokenCreate() *cobra.Command {
	var t api.NewToken
	var expires time.Duration
	c := &cobra.Command{
		Use:   "create ACCOUNT",
		Short: "Make a token; its secret is shown this once",
		Example: examples(`
# For one machine, this week
livepatch-admin token create example.com --max-uses 1 --expires 168h`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			t.Account = args[0]
			if expires > 0 {
				at := p.now().Add(expires).UTC()
				t.Expires = &at
			}
			s, err := p.connect()
			if err != nil {
				return cannot("create token", err)
			}
			got, err := s.api.CreateToken(c.Context(), t)
			if err != nil {
				return cannot("create token", err)
			}
			info, err := s.api.Info(c.Context())
			if err == nil && info.Trust == "" {
				fmt.Fprintln(p.s.Err, "livepatch-admin: warning: the server has no stream yet, so the command has no --trust; run 'livepatch-admin keys push', then make the token anew")
			}
			return p.print(got, func() error {
				return p.s.Printf("%s\n\nThe token is shown this once. On a machine of %s, run as root:\n\n  %s", got.Secret, args[0], got.Enable)
			})
		},
	}
	c.Flags().StringVar(&t.Name, "name", "", "`NAME` to remember the token by")
	c.Flags().IntVar(&t.MaxUses, "max-uses", 0, "how many machines may enrol with it (default as many as the account may have)")
	c.Flags().DurationVar(&expires, "expires", 0, "how long machines may enrol with it, such as 168h (default for good)")
	return c
}

func (p *program) tokenList() *cobra.Command {
	return &cobra.Command{
		Use:     "list [ACCOUNT]",
		Short:   "List tokens, of one account or of all",
		Example: examples(`livepatch-admin token list example.com`),
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			account := ""
			if len(args) > 0 {
				account = args[0]
			}
			s, err := p.connect()
			if err != nil {
				return cannot("list tokens", err)
			}
			tokens, err := s.api.Tokens(c.Context(), account)
			if err != nil {
				return cannot("list tokens", err)
			}
			return p.print(tokens, func() error {
				t := cli.NewTable("id", "account", "name", "uses", "created", "state")
				for _, tok := range tokens {
					t.Row(tok.ID, tok.Account, tok.Name, uses(tok), cli.Time(tok.Created), p.tokenState(tok))
				}
				return t.Write(p.s)
			})
		},
	}
}

func uses(t api.Token) string {
	if t.MaxUses == 0 {
		return fmt.Sprint(t.Uses)
	}
	return fmt.Sprintf("%d of %d", t.Uses, t.MaxUses)
}

func (p *program) tokenState(t api.Token) string {
	switch {
	case t.Revoked != nil:
		return "revoked " + cli.Time(*t.Revoked)
	case t.Expires != nil && t.Expires.Before(p.now()):
		return "expired " + cli.Time(*t.Expires)
	case t.MaxUses > 0 && t.Uses >= t.MaxUses:
		return "used up"
	case t.Expires != nil:
		return "valid until " + cli.Time(*t.Expires)
	}
	return "valid"
}

func (p *program) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token; machines enrolled with it stay enrolled",
		Example: examples(`
livepatch-admin token list example.com
livepatch-admin token revoke 7f1c0a`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("revoke token", err)
			}
			if err := s.api.RevokeToken(c.Context(), args[0]); err != nil {
				return cannot("revoke token", err)
			}
			return p.print(map[string]string{"revoked": args[0]}, func() error {
				return p.s.Printf("Revoked token %s. Machines that enrolled with it stay enrolled.", args[0])
			})
		},
	}
}
