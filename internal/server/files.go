package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"livepatch"
	"livepatch/internal/blob"
	"livepatch/internal/stream"
)

// timestampFile is the one file of the stream that changes under its name.
const timestampFile = "metadata/timestamp.json"

// streamFile serves a file of the stream. Every file but the timestamp is named by
// its version or its digest, so that caches may keep it for ever.
func (s *Server) streamFile(w http.ResponseWriter, r *http.Request, _ caller) error {
	name := r.PathValue("name")
	if err := blob.ValidName(stream.StoreName(name)); err != nil {
		return livepatch.Errorf(livepatch.CodeNotFound, "the stream has no such file")
	}
	f, err := s.Blobs.Get(r.Context(), stream.StoreName(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return livepatch.Errorf(livepatch.CodeNotFound, "the stream has no file %s", name)
	case err != nil:
		return fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	if name == timestampFile {
		return serveTimestamp(w, r, f)
	}
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("ETag", `"`+path.Base(name)+`"`)
	if seeker, ok := f.(io.ReadSeeker); ok {
		http.ServeContent(w, r, "", time.Time{}, seeker)
		return nil
	}
	if _, err := io.Copy(w, f); err != nil {
		s.Log.Debug("the caller went away", "err", err)
	}
	return nil
}

// serveTimestamp serves the file that says what is new: to be asked for every
// time, and answered by 304 when nothing is.
func serveTimestamp(w http.ResponseWriter, r *http.Request, f io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(f, maxRootSize))
	if err != nil {
		return fmt.Errorf("read timestamp: %w", err)
	}
	sum := sha256.Sum256(b)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	return nil
}

func contentType(name string) string {
	switch {
	case strings.HasSuffix(name, ".json"):
		return "application/json"
	case strings.HasSuffix(name, ".zst"):
		return "application/zstd"
	}
	return "application/octet-stream"
}
