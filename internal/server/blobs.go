package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"regexp"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/stream"
)

var digestRE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// blobName is where the stream has a blob of this kind.
func blobName(kind api.BlobKind, digest string) (string, error) {
	if !digestRE.MatchString(digest) {
		return "", livepatch.Errorf(livepatch.CodeInvalid, "%q is not a SHA-256 in lower-case hex", digest)
	}
	switch kind {
	case api.BlobArchive:
		return stream.StoreName(stream.ArchiveName(digest)), nil
	case api.BlobSource:
		return stream.StoreName(stream.SourceName(digest)), nil
	}
	return "", livepatch.Errorf(livepatch.CodeInvalid, "kind %q is not archive or source", kind)
}

// putBlob takes in bytes under their digest. It is harmless to stop after it:
// nothing names them yet.
func (s *Server) putBlob(w http.ResponseWriter, r *http.Request, _ caller) error {
	digest := r.PathValue("sha256")
	name, err := blobName(api.BlobKind(r.URL.Query().Get("kind")), digest)
	if err != nil {
		return err
	}
	if r.ContentLength < 1 {
		return livepatch.Errorf(livepatch.CodeInvalid, "an upload needs a Content-Length above 0")
	}
	if r.ContentLength > livepatch.MaxArchiveSize {
		return livepatch.Errorf(livepatch.CodeInvalid, "an upload has at most %d bytes", livepatch.MaxArchiveSize)
	}
	if s.holds(r.Context(), name, digest) {
		return s.reply(w, http.StatusOK, struct{}{})
	}
	body := &checked{r: r.Body, left: r.ContentLength, sum: sha256.New(), want: digest}
	if err := s.Blobs.Put(r.Context(), name, body, r.ContentLength); err != nil {
		if body.err != nil {
			return body.err
		}
		return fmt.Errorf("store upload: %w", err)
	}
	return s.reply(w, http.StatusCreated, struct{}{})
}

// holds tells whether the blob is there and whole. One that is not readable or has
// rotted is not: it is to be replaced, whatever size it has.
func (s *Server) holds(ctx context.Context, name, digest string) bool {
	f, err := s.Blobs.Get(ctx, name)
	if err != nil {
		return false
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil || hex.EncodeToString(sum.Sum(nil)) != digest {
		s.Log.Warn("a stored blob is damaged; it is replaced by the one sent now", "name", name, "err", err)
		return false
	}
	return true
}

// checked hands on bytes, and an error in place of the last ones when they do not
// have the digest wanted: a blob store then stores nothing.
type checked struct {
	r    io.Reader
	left int64
	sum  hash.Hash
	want string
	err  error
}

func (c *checked) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	c.left -= int64(n)
	switch {
	case c.left < 0, c.left == 0 && hex.EncodeToString(c.sum.Sum(nil)) != c.want:
		c.err = livepatch.Errorf(livepatch.CodeTampered, "the bytes sent do not have the digest %s; send them again", c.want)
	case err == io.EOF && c.left > 0:
		c.err = livepatch.Errorf(livepatch.CodeInvalid, "the upload ended early; send it again")
	case err != nil && err != io.EOF:
		c.err = livepatch.Errorf(livepatch.CodeUnavailable, "the upload was interrupted; send it again: %w", err)
	}
	if c.err != nil {
		return 0, c.err
	}
	return n, err
}
