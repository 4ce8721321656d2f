package api

import (
	"context"
	"net/http"
)

// CreateAccount makes an account. Operator credential. CodeConflict when the name
// is taken.
func (c *Client) CreateAccount(ctx context.Context, a NewAccount) (Account, error) {
	return call[Account](ctx, c, http.MethodPost, "/v1/accounts", a)
}

// Accounts lists all accounts by name. Operator credential.
func (c *Client) Accounts(ctx context.Context) ([]Account, error) {
	return all[Account](ctx, c, "/v1/accounts", nil)
}
