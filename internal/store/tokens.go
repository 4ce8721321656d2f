package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"livepatch"
	"livepatch/internal/api"
)

// TokenPrefix begins every account token, so that people and secret scanners
// recognise one.
const TokenPrefix = "lp_"

// newSecret makes 256 random bits in a form that survives being read aloud.
func newSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return TokenPrefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
}

// CreateToken makes a token of an account and returns its secret, which nothing
// returns again.
func (s *Store) CreateToken(ctx context.Context, actor string, n api.NewToken) (api.Token, string, error) {
	now := s.now()
	switch {
	case n.MaxUses < 0:
		return api.Token{}, "", livepatch.Errorf(livepatch.CodeInvalid, "max_uses %d is below 0", n.MaxUses)
	case n.Expires != nil && !n.Expires.After(now):
		return api.Token{}, "", livepatch.Errorf(livepatch.CodeInvalid, "the token would have expired already, at %s", n.Expires.UTC())
	case len(n.Name) > 100:
		return api.Token{}, "", livepatch.Errorf(livepatch.CodeInvalid, "a token's name has at most 100 bytes")
	}
	var expires int64
	if n.Expires != nil {
		expires = millis(*n.Expires)
	}
	secret := newSecret()
	t := api.Token{ID: newID("t", now), Name: n.Name, MaxUses: n.MaxUses, Created: fromMillis(millis(now)), Expires: timeOrNil(expires)}
	err := s.write(ctx, func(tx *sql.Tx) error {
		a, err := account(ctx, tx, n.Account)
		if err != nil {
			return err
		}
		t.Account = a.Name
		_, err = tx.ExecContext(ctx, `INSERT INTO tokens (id, account_id, name, hash, uses, max_uses, created, expires, revoked) VALUES ($1, $2, $3, $4, 0, $5, $6, $7, 0)`,
			t.ID, a.ID, t.Name, Hash(secret), t.MaxUses, millis(now), expires)
		if err != nil {
			return fmt.Errorf("add token: %w", err)
		}
		return audit(ctx, tx, now, actor, "token.create", t.ID, "account "+a.Name)
	})
	if err != nil {
		return api.Token{}, "", err
	}
	return t, secret, nil
}

// Tokens lists the tokens of an account, given by id or name, or all when ref is
// empty; oldest first.
func (s *Store) Tokens(ctx context.Context, ref string) ([]api.Token, error) {
	var tokens []api.Token
	err := s.read(ctx, func(tx *sql.Tx) error {
		id := ""
		if ref != "" {
			a, err := account(ctx, tx, ref)
			if err != nil {
				return err
			}
			id = a.ID
		}
		rows, err := tx.QueryContext(ctx, `SELECT t.id, a.name, t.name, t.uses, t.max_uses, t.created, t.expires, t.revoked
			FROM tokens t JOIN accounts a ON a.id = t.account_id WHERE $1 = '' OR t.account_id = $1 ORDER BY t.id`, id)
		tokens, err = collect(rows, err, func(scan func(...any) error) (t api.Token, err error) {
			var created, expires, revoked int64
			err = scan(&t.ID, &t.Account, &t.Name, &t.Uses, &t.MaxUses, &created, &expires, &revoked)
			t.Created, t.Expires, t.Revoked = fromMillis(created), timeOrNil(expires), timeOrNil(revoked)
			return t, err
		})
		if err != nil {
			return fmt.Errorf("list tokens: %w", err)
		}
		return nil
	})
	return tokens, err
}

// RevokeToken ends a token; the machines enrolled with it stay. Revoking it again
// changes nothing.
func (s *Store) RevokeToken(ctx context.Context, actor, id string) error {
	now := s.now()
	return s.write(ctx, func(tx *sql.Tx) error {
		var revoked int64
		err := tx.QueryRowContext(ctx, `SELECT revoked FROM tokens WHERE id = $1`, id).Scan(&revoked)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return livepatch.Errorf(livepatch.CodeNotFound, "there is no token %q; tokens are revoked by their id, not by their secret", id)
		case err != nil:
			return fmt.Errorf("find token: %w", err)
		case revoked != 0:
			return nil
		}
		if _, err := tx.ExecContext(ctx, `UPDATE tokens SET revoked = $2 WHERE id = $1`, id, millis(now)); err != nil {
			return fmt.Errorf("revoke token: %w", err)
		}
		return audit(ctx, tx, now, actor, "token.revoke", id, "")
	})
}
