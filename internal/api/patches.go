package api

import (
	"context"
	"net/http"
	"net/url"

	"livepatch"
)

// Patches lists the published livepatches of a kernel release, or of all when it
// is empty; by kernel, then version. Operator credential.
func (c *Client) Patches(ctx context.Context, release string) ([]Patch, error) {
	q := url.Values{}
	if release != "" {
		q.Set("kernel", release)
	}
	return all[Patch](ctx, c, "/v1/patches", q)
}

// Patch returns one published livepatch. Operator credential.
func (c *Client) Patch(ctx context.Context, k livepatch.KernelTarget, v livepatch.Version) (Patch, error) {
	return call[Patch](ctx, c, http.MethodGet, "/v1/patches/"+url.PathEscape(k.Release)+"/"+url.PathEscape(k.Arch)+"/"+v.String(), nil)
}
