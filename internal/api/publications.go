package api

import (
	"context"
	"net/http"
)

// Publish hands a signed change of the stream to the server. When it returns nil
// the change is public. CodeConflict: somebody else published meanwhile; read the
// stream again, sign again, repeat. Operator credential.
func (c *Client) Publish(ctx context.Context, p Publication) error {
	_, err := call[none](ctx, c, http.MethodPost, "/v1/publications", p)
	return err
}
