package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/localapi"
)

// right is who may call a route.
type right int

// The rights.
const (
	anybody right = iota
	admin
)

// route is one row of the table: what, who, how.
type route struct {
	pattern string
	right   right
	handle  func(*http.Request) (any, error)
}

// routes is the table of the socket. No handler checks rights itself.
func (a *Agent) routes() []route {
	return []route{
		{localapi.RouteStatus, anybody, func(*http.Request) (any, error) { return a.statusNow(time.Now()) }},
		{localapi.RouteDoctor, anybody, func(*http.Request) (any, error) { return a.doctor() }},
		{localapi.RouteConfig, anybody, func(*http.Request) (any, error) { return *a.shown.Load(), nil }},
		{localapi.RouteSet, admin, withBody(a.set)},
		{localapi.RouteEnable, admin, withBody(a.enable)},
		{localapi.RouteDisable, admin, func(r *http.Request) (any, error) { return a.disable(r.Context()) }},
		{localapi.RouteRefresh, admin, withBody(a.refresh)},
		{localapi.RouteUnload, admin, func(r *http.Request) (any, error) { return a.unload(r.Context()) }},
	}
}

// maxBody bounds a request's body, in bytes: a setting may hold a chain of
// certificates.
const maxBody = 1 << 20

// withBody decodes the body; an empty one is the zero request.
func withBody[Q, P any](f func(context.Context, Q) (P, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var q Q
		d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&q); err != nil && !errors.Is(err, io.EOF) {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "the request is malformed: %w", err)
		}
		return f(r.Context(), q)
	}
}

// Handler serves package localapi. Work that was begun goes on when its caller
// goes away; it ends when ctx is done.
func (a *Agent) Handler(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range a.routes() {
		mux.HandleFunc(rt.pattern, func(w http.ResponseWriter, r *http.Request) {
			if rt.right == admin && !a.mayChange(r.Context()) {
				fail(w, livepatch.Errorf(livepatch.CodeNotPrivileged, "only root may do this; try again with sudo"))
				return
			}
			work, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
			defer cancel()
			defer context.AfterFunc(ctx, cancel)()
			answer, err := rt.handle(r.WithContext(work))
			if err != nil {
				fail(w, err)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer) // the caller went away
		})
	}
	return mux
}

type peerKey struct{}

// mayChange tells whether the peer is an administrator; who is not known is none.
func (a *Agent) mayChange(ctx context.Context) bool {
	uid, ok := ctx.Value(peerKey{}).(uint32)
	return ok && a.o.Admin(uid)
}

// Serve answers on l until ctx is done. Connections that are no unix sockets may
// read only.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           a.Handler(ctx),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if u, ok := c.(*net.UnixConn); ok {
				if uid, err := kernel.PeerUID(u); err == nil {
					return context.WithValue(ctx, peerKey{}, uid)
				}
			}
			return ctx
		},
	}
	stop := context.AfterFunc(ctx, func() {
		// Whoever waits for an answer gets it if it is there soon.
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(c)
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// fail writes an error in the form of RFC 9457.
func fail(w http.ResponseWriter, err error) {
	f := localapi.Failure{Code: livepatch.CodeOf(err), Detail: err.Error(), Status: http.StatusInternalServerError}
	switch f.Code {
	case livepatch.CodeInvalid:
		f.Status = http.StatusBadRequest
	case livepatch.CodeNotPrivileged:
		f.Status = http.StatusForbidden
	case livepatch.CodeNotEnabled, livepatch.CodeEnabled, livepatch.CodeConflict:
		f.Status = http.StatusConflict
	case livepatch.CodeUnavailable, livepatch.CodeTLS, livepatch.CodeClock:
		f.Status = http.StatusBadGateway
	case livepatch.CodeInternal:
	default:
		f.Status = http.StatusUnprocessableEntity
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(f) // the caller went away
}
