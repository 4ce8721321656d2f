package agent

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/localapi"
	"livepatch/internal/stream"
)

// listen serves the agent on a real unix socket.
func (b *bench) listen() *localapi.Client {
	b.Helper()
	dir, err := os.MkdirTemp("", "lp") // short: a socket's path has 107 bytes
	b.ok(err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	b.ok(err)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- b.a.Serve(ctx, l) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("Serve: %v", err)
		}
	})
	return localapi.NewClient(path)
}

func TestEverybodyReadsOnlyRootChanges(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	root := true
	b.o.Admin = func(uid uint32) bool { return root && int(uid) == os.Getuid() }
	b.boot()
	c, ctx := b.listen(), t.Context()

	_, err := c.Status(ctx)
	wantError(t, err, livepatch.CodeNotEnabled, "Machine is not enabled")
	e, err := c.Enable(ctx, localapi.EnableRequest{Token: goodToken, Server: serverURL})
	b.ok(err)
	if e.Account != "home" || e.Trusted != "tls" || e.MachineID == "" {
		t.Errorf("enable answers %+v", e)
	}
	b.publish(1)
	r, err := c.Refresh(ctx, localapi.RefreshRequest{})
	b.ok(err)
	if !strings.Contains(r.Message, "1.1 is applied") {
		t.Errorf("refresh says %q", r.Message)
	}

	root = false
	s, err := c.Status(ctx)
	b.ok(err)
	if s.Status[0].Livepatch.Version != version(1) || s.Architecture != "amd64" || s.CPUModel == "" {
		t.Errorf("status is %+v", s)
	}
	_, err = c.Doctor(ctx)
	b.ok(err)
	_, err = c.Config(ctx)
	b.ok(err)
	for name, change := range map[string]func() error{
		"enable":  func() error { _, err := c.Enable(ctx, localapi.EnableRequest{Token: goodToken}); return err },
		"disable": func() error { _, err := c.Disable(ctx); return err },
		"refresh": func() error { _, err := c.Refresh(ctx, localapi.RefreshRequest{}); return err },
		"unload":  func() error { _, err := c.Unload(ctx); return err },
		"config":  func() error { _, err := c.SetConfig(ctx, map[string]string{"log-level": "debug"}); return err },
	} {
		if err := change(); livepatch.CodeOf(err) != livepatch.CodeNotPrivileged || !strings.Contains(err.Error(), "sudo") {
			t.Errorf("%s by a user: %v", name, err)
		}
	}
	b.wantRunning(moduleName(1))
}

// TestEveryRouteIsInTheTable: what changes something is for root.
func TestEveryRouteIsInTheTable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for _, r := range b.a.routes() {
		if reads := strings.HasPrefix(r.pattern, "GET "); reads != (r.right == anybody) {
			t.Errorf("%s may be called by the wrong people", r.pattern)
		}
	}
}

func TestWorkGoesOnWhenTheCallerGoes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.o.Admin = func(uint32) bool { return true }
	b.boot()
	b.enable()
	b.publish(1)
	b.kern.TransitionTime(300 * time.Millisecond)
	c := b.listen()
	ctx, cancel := context.WithCancel(t.Context())
	b.o.Crash = nil
	b.a.o.Crash = func(at string) {
		if at == "apply:loaded" {
			cancel()
		}
	}
	_, err := c.Refresh(ctx, localapi.RefreshRequest{})
	if err == nil {
		t.Fatal("the caller was not interrupted")
	}
	b.ok(b.a.lock(t.Context())) // waits for the work
	b.a.unlock()
	b.wantRunning(moduleName(1))
	if _, ok := b.srv.report(livepatch.ReportApplied); !ok {
		t.Error("the server was not told")
	}
}

func TestMalformedRequests(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	h := b.a.Handler(t.Context())
	for name, body := range map[string]string{
		"no JSON":       "{",
		"unknown field": `{"tokn":"x"}`,
		"too long":      `{"token":"` + strings.Repeat("x", maxBody) + `"}`,
	} {
		rec := &recorder{header: http.Header{}}
		req, err := http.NewRequestWithContext(context.WithValue(t.Context(), peerKey{}, uint32(0)), http.MethodPut, "/v1/enable", strings.NewReader(body))
		b.ok(err)
		h.ServeHTTP(rec, req)
		if rec.status != http.StatusBadRequest || !strings.Contains(rec.body.String(), string(livepatch.CodeInvalid)) {
			t.Errorf("%s: %d %s", name, rec.status, rec.body.String())
		}
	}
}

func TestDoctorNamesEachRequirement(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.kern.Set("proc/sys/kernel/modules_disabled", "1\n")
	d, err := b.a.doctor()
	b.ok(err)
	for _, c := range d.Checks {
		if c.Name == "modules_disabled" && (c.OK || c.Remedy == "") || c.Name == "CONFIG_LIVEPATCH" && (!c.OK || c.Remedy != "") {
			t.Errorf("check is %+v", c)
		}
	}
	if len(d.Checks) < 8 {
		t.Errorf("only %d checks", len(d.Checks))
	}
}

func TestTrustIsThatOfTheAttemptThatSucceeded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	_, err := b.a.enable(t.Context(), localapi.EnableRequest{Token: "lp_bad", Server: serverURL})
	wantError(t, err, livepatch.CodeUnknownToken, "Unknown Auth-Token")
	root, err := stream.FetchFirstRoot(t.Context(), b.repo.Fetcher())
	b.ok(err)
	r, err := b.a.enable(t.Context(), localapi.EnableRequest{Token: goodToken, Server: serverURL, Trust: stream.Fingerprint(root)})
	b.ok(err)
	if r.Trusted != "fingerprint" || b.status().Trusted != "fingerprint" {
		t.Errorf("trusted by %s, status says %s", r.Trusted, b.status().Trusted)
	}
}

func TestPackagedRootIsTakenFirst(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	root, err := stream.FetchFirstRoot(t.Context(), b.repo.Fetcher())
	b.ok(err)
	b.o.TrustFile = filepath.Join(t.TempDir(), "root.json")
	b.ok(os.WriteFile(b.o.TrustFile, root, 0o600))
	b.boot()
	b.srv.spoil = func(path string, body []byte) []byte {
		if strings.HasSuffix(path, "/1.root.json") {
			return []byte("{}") // the server is not asked for it
		}
		return body
	}
	b.enable()
	if s := b.status(); s.Trusted != "package" {
		t.Errorf("trusted by %s", s.Trusted)
	}
	b.publish(1)
	b.refresh()
	b.wantRunning(moduleName(1))
}
