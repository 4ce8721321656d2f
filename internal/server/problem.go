package server

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"livepatch"
	"livepatch/internal/api"
)

// statusOf is the HTTP status of an error code.
func statusOf(code livepatch.Code) int {
	switch code {
	case livepatch.CodeInvalid:
		return http.StatusBadRequest
	case livepatch.CodeUnauthorized, livepatch.CodeUnknownToken:
		return http.StatusUnauthorized
	case livepatch.CodeForbidden, livepatch.CodeTokenRevoked, livepatch.CodeTokenUsed, livepatch.CodeSeatLimit:
		return http.StatusForbidden
	case livepatch.CodeNotFound:
		return http.StatusNotFound
	case livepatch.CodeConflict:
		return http.StatusConflict
	case livepatch.CodeUnavailable:
		return http.StatusServiceUnavailable
	case livepatch.CodeInternal:
		return http.StatusInternalServerError
	}
	return http.StatusUnprocessableEntity
}

// problem answers with an error. What is our fault is logged in full and shown
// only by a number to find it by.
func (s *Server) problem(w http.ResponseWriter, r *http.Request, err error) {
	p := api.Problem{Type: "about:blank", Detail: err.Error(), Code: livepatch.CodeOf(err)}
	p.Status = statusOf(p.Code)
	var (
		tooLarge *http.MaxBytesError
		many     tooMany
	)
	switch {
	case errors.As(err, &tooLarge):
		p.Status, p.Code = http.StatusRequestEntityTooLarge, livepatch.CodeInvalid
		p.Detail = fmt.Sprintf("the request has more than the %d bytes allowed here", tooLarge.Limit)
	case errors.As(err, &many):
		p.Status, p.Code = http.StatusTooManyRequests, livepatch.CodeUnavailable
		w.Header().Set("Retry-After", "60")
	case p.Code == livepatch.CodeInternal:
		id := rand.Text()[:10]
		s.Log.Error("internal error", "id", id, "method", r.Method, "path", r.URL.Path, "err", err)
		p.Detail = "the server failed at this; its log says why, under id " + id
	}
	p.Title = http.StatusText(p.Status)
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	b, err := json.Marshal(p)
	if err != nil {
		s.Log.Error("encode problem", "err", err)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	s.write(w, b)
}

// reply answers with v as JSON.
func (s *Server) reply(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	s.write(w, b)
	return nil
}

// write sends what can no longer be answered otherwise.
func (s *Server) write(w http.ResponseWriter, b []byte) {
	if _, err := w.Write(b); err != nil {
		s.Log.Debug("the caller went away", "err", err)
	}
}

// decode reads the body as JSON. Fields it does not know are passed over: newer
// machines talk to older servers.
func decode[T any](r *http.Request) (T, error) {
	var v T
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return v, err
		}
		return v, livepatch.Errorf(livepatch.CodeInvalid, "the request is not the JSON expected here: %w", err)
	}
	return v, nil
}
