package api

import (
	"context"
	"net/http"
)

// Info asks what server this is. Needs no credential.
func (c *Client) Info(ctx context.Context) (Info, error) {
	return call[Info](ctx, c, http.MethodGet, "/v1/info", nil)
}
