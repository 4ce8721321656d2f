package main

import (
	"bytes"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

// onTerminal runs status against a daemon with this answer, with a person watching.
func onTerminal(t *testing.T, color bool, answer string, args ...string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(answer))
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	var out, errs bytes.Buffer
	p := &program{
		name: "livepatch", daemon: localapi.NewClient(socket), now: time.Now,
		s: &cli.Streams{In: strings.NewReader(""), Out: &out, Err: &errs, OutTerminal: true, ErrTerminal: true, Color: color, Width: 80},
	}
	if code := cli.Run(t.Context(), p.command(), append([]string{"status"}, args...), p.s); code != cli.ExitOK {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	if errs.Len() > 0 {
		t.Errorf("standard error has %q", &errs)
	}
	return out.String()
}

// TestStatusOnTerminal: a person gets the humane form, with colour only where it is
// allowed; who asks for JSON gets JSON, without.
func TestStatusOnTerminal(t *testing.T) {
	t.Parallel()
	const answer = `{"Status":[{"Kernel":"6.1.0-1-amd64","Running":true,"Livepatch":{"CheckState":"checked","State":"applied","Version":"1.1"},"Supported":"unsupported"}]}`
	plain := onTerminal(t, false, answer)
	if !strings.Contains(plain, "patch state: ✓ ") || strings.Contains(plain, "\x1b") {
		t.Errorf("without colour:\n%q", plain)
	}
	colored := onTerminal(t, true, answer)
	if !strings.Contains(colored, "patch state: \x1b[32m✓\x1b[0m ") || !strings.Contains(colored, "kernel state: \x1b[31m✗\x1b[0m ") {
		t.Errorf("with colour:\n%q", colored)
	}
	if got := onTerminal(t, true, answer, "--format", "json"); !strings.HasPrefix(got, "{\n") || strings.Contains(got, "\x1b") {
		t.Errorf("JSON:\n%q", got)
	}
}
