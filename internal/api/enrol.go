package api

import (
	"context"
	"net/http"
)

// Enrol exchanges an account token for a place in the account. It may be repeated
// with the same request: the machine keeps its place. Needs no credential; the
// token is in the request. CodeUnknownToken, CodeTokenRevoked, CodeTokenUsed and
// CodeSeatLimit tell what stands in the way.
func (c *Client) Enrol(ctx context.Context, r EnrolRequest) (EnrolResponse, error) {
	return call[EnrolResponse](ctx, c, http.MethodPost, "/v1/machines", r)
}

// Leave gives up the machine's own place. Machine credential; no error when the
// server does not know the machine any more.
func (c *Client) Leave(ctx context.Context) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/v1/machine", nil)
	return err
}
