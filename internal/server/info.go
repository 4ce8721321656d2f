package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/stream"
)

func (s *Server) index(w http.ResponseWriter, r *http.Request, _ caller) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	s.write(w, fmt.Appendf(nil, `livepatch-server %s

This server hands out Linux livepatches. On a machine to be patched, install the
package livepatch and type the command that came with your token:

    livepatch enable TOKEN --server %s

/v1/info   what this server is
/stream/   the signed stream
`, s.Version, s.PublicURL))
	return nil
}

func (s *Server) info(w http.ResponseWriter, r *http.Request, _ caller) error {
	trust, err := s.fingerprint(r.Context())
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.Info{Version: s.Version, Time: s.Now().UTC(), Trust: trust})
}

// healthy says that the process answers.
func (s *Server) healthy(w http.ResponseWriter, _ *http.Request, _ caller) error {
	s.write(w, []byte("ok\n"))
	return nil
}

// ready says that the server can do its work: its stores answer.
func (s *Server) ready(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.Store.Ping(r.Context()); err != nil {
		return livepatch.Errorf(livepatch.CodeUnavailable, "the database does not answer: %w", err)
	}
	_, err := s.Blobs.Stat(r.Context(), stream.StoreName("metadata/timestamp.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return livepatch.Errorf(livepatch.CodeUnavailable, "the blob store does not answer: %w", err)
	}
	s.write(w, []byte("ok\n"))
	return nil
}

// maxRootSize bounds the first root, in bytes.
const maxRootSize = 512 << 10

// fingerprint is that of the stream's first root, which never changes once it is
// there; empty while it is not.
func (s *Server) fingerprint(ctx context.Context) (string, error) {
	s.trustMu.Lock()
	defer s.trustMu.Unlock()
	if s.trust != "" {
		return s.trust, nil
	}
	r, err := s.Blobs.Get(ctx, stream.StoreName("metadata/1.root.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("open first root: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxRootSize))
	if err != nil {
		return "", fmt.Errorf("read first root: %w", err)
	}
	s.trust = stream.Fingerprint(b)
	return s.trust, nil
}
