package localapi_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/localapi"
)

// serve listens on a socket of its own and returns its path.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return path
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		code   livepatch.Code
		text   string
	}{
		"the daemon's word": {403, `{"status":403,"code":"unknown-token","detail":"Unknown Auth-Token"}`, livepatch.CodeUnknownToken, "Unknown Auth-Token"},
		"no reason":         {500, `oops`, livepatch.CodeInternal, "status 500 and no reason"},
		"no JSON":           {200, `<html>`, livepatch.CodeInternal, "something else than its own protocol"},
	} {
		socket := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		})
		_, err := localapi.NewClient(socket).Enable(t.Context(), localapi.EnableRequest{Token: "t"})
		if livepatch.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %s: %v", name, livepatch.CodeOf(err), err)
		}
	}
}

func TestClientUnreachable(t *testing.T) {
	t.Parallel()
	_, err := localapi.NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	if livepatch.CodeOf(err) != livepatch.CodeUnavailable || !strings.Contains(err.Error(), "systemctl start livepatchd") {
		t.Errorf("without a socket: %v", err)
	}

	gone := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err = localapi.NewClient(gone).Status(t.Context())
	if livepatch.CodeOf(err) != livepatch.CodeUnavailable || !strings.Contains(err.Error(), "went away") {
		t.Errorf("connection closed: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	hangs := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err = localapi.NewClient(hangs).Refresh(ctx, localapi.RefreshRequest{})
	if livepatch.CodeOf(err) != livepatch.CodeUnavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
