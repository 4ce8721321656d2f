package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Audit returns the last n lines of the audit log, newest first; n is at most
// 1000, and 0 means 100. Operator credential.
func (c *Client) Audit(ctx context.Context, n int) ([]AuditLine, error) {
	q := url.Values{}
	if n > 0 {
		q.Set("limit", strconv.Itoa(n))
	}
	page, err := call[List[AuditLine]](ctx, c, http.MethodGet, "/v1/audit?"+q.Encode(), nil)
	return page.Items, err
}
