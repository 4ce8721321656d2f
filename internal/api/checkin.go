package api

import (
	"context"
	"net/http"
)

// CheckIn tells the server how the machine is and asks what it is to do. Machine
// credential. CodeUnauthorized means that the machine was removed on the server.
func (c *Client) CheckIn(ctx context.Context, r CheckInRequest) (CheckInResponse, error) {
	return call[CheckInResponse](ctx, c, http.MethodPost, "/v1/check-in", r)
}
