package api

import (
	"context"
	"net/http"
	"net/url"
)

// CreateToken makes a token of an account; its secret is in the answer and
// nowhere else. Operator credential.
func (c *Client) CreateToken(ctx context.Context, t NewToken) (CreatedToken, error) {
	return call[CreatedToken](ctx, c, http.MethodPost, "/v1/tokens", t)
}

// Tokens lists the tokens of an account, given by id or name, or of all when it is
// empty. Operator credential.
func (c *Client) Tokens(ctx context.Context, account string) ([]Token, error) {
	q := url.Values{}
	if account != "" {
		q.Set("account", account)
	}
	return all[Token](ctx, c, "/v1/tokens", q)
}

// RevokeToken ends a token; machines enrolled with it stay. Operator credential.
// Revoking twice is no error.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil)
	return err
}
