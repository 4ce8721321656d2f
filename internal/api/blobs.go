package api

import (
	"context"
	"io"
	"net/http"

	"livepatch"
)

// BlobKind tells what uploaded bytes are, which decides where the stream serves
// them.
type BlobKind string

// The kinds of blob.
const (
	// BlobArchive is a zstd-compressed module: /stream/archives/SHA256.zst.
	BlobArchive BlobKind = "archive"
	// BlobSource is what a module was built from: /stream/sources/SHA256.
	BlobSource BlobKind = "source"
)

// MaxSourceSize bounds an uploaded source, in bytes.
const MaxSourceSize = 64 << 20

// PutBlob uploads bytes under their digest, before a Publication names them.
// r must give exactly b.Size bytes. Twice is no error. Operator credential.
func (c *Client) PutBlob(ctx context.Context, kind BlobKind, b livepatch.Blob, r io.Reader) error {
	req, err := c.request(ctx, http.MethodPut, "/v1/blobs/"+b.SHA256+"?kind="+string(kind), r)
	if err != nil {
		return err
	}
	req.ContentLength = b.Size
	req.Header.Set("Content-Type", "application/octet-stream")
	_, err = c.do(req)
	return err
}
