// Package journey walks the three journeys of ARCHITECTURE.md with both real ends:
// the real server and the real agent over TLS, HTTP/2 and the event stream. Only
// the kernel is a fake.
package journey

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/agent"
	"livepatch/internal/api"
	"livepatch/internal/elfobj"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
	"livepatch/internal/server"
	"livepatch/internal/store"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// house is a server, its operator, and one machine.
type house struct {
	testing.TB
	repo     *streamtest.Repo
	url      string
	operator *api.Client
	kernel   *kerneltest.Kernel
	dir      string
	daemon   *localapi.Client
}

func build(t testing.TB) *house {
	t.Helper()
	h := &house{TB: t, repo: streamtest.New(t), kernel: kerneltest.New(t)}
	var err error
	h.dir, err = os.MkdirTemp("", "lp") // a socket's path must be short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(h.dir)) })
	db, err := store.OpenSQLite(t.Context(), filepath.Join(h.dir, "server.db"), time.Now)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	must(t, db.AddOperator(t.Context(), "test", "ann", "operator-credential"))
	s := server.New(server.Options{Store: db, Blobs: h.repo.Store, Stream: h.repo.Publisher, Log: slog.New(slog.DiscardHandler)})
	srv := httptest.NewUnstartedServer(s.Handler())
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	h.url = srv.URL
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	must(t, os.WriteFile(filepath.Join(h.dir, "ca.crt"), ca, 0o600))
	must(t, os.WriteFile(filepath.Join(h.dir, "livepatch.yaml"), []byte("ca-certs: "+filepath.Join(h.dir, "ca.crt")+"\n"), 0o600))
	c, err := api.NewHTTP(ca)
	must(t, err)
	t.Cleanup(c.CloseIdleConnections)
	h.operator = &api.Client{BaseURL: h.url, Credential: "operator-credential", HTTP: c}
	return h
}

// boot starts the daemon on the machine; the function returned ends it in an
// orderly way.
func (h *house) boot() (stop func()) {
	h.Helper()
	a, err := agent.New(agent.Options{
		StateDir: filepath.Join(h.dir, "state"), ConfigFile: filepath.Join(h.dir, "livepatch.yaml"),
		Kernel: h.kernel.System(), Version: "1.2.3", Random: rand.Reader, Jitter: mathrand.NewPCG(1, 2),
		Stopping: func(context.Context) bool { return true }, Admin: func(uint32) bool { return true },
		Log: slog.New(slog.DiscardHandler),
	})
	must(h, err)
	socket := filepath.Join(h.dir, "socket")
	l, err := net.Listen("unix", socket)
	must(h, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- a.Serve(ctx, l) }()
	must(h, a.Start(ctx))
	go func() { done <- a.Run(ctx) }()
	h.daemon = localapi.NewClient(socket)
	return func() {
		cancel()
		must(h, <-done)
		must(h, <-done)
	}
}

// publish publishes a real livepatch module as version n.1, as an operator does.
func (h *house) publish(n int) livepatch.Livepatch {
	h.Helper()
	ko, err := os.ReadFile("../../internal/elfobj/testdata/two_objects.ko")
	must(h, err)
	ko = bytes.ReplaceAll(ko, []byte("two_objects"), fmt.Appendf(nil, "lp_test_%03d", n))
	m, err := elfobj.ParseModule(ko)
	must(h, err)
	archive, blob, err := stream.CompressModule(ko)
	must(h, err)
	must(h, h.operator.PutBlob(h.Context(), api.BlobArchive, blob, bytes.NewReader(archive)))
	k := kerneltest.Running()
	p := h.repo.Livepatch(k, uint32(n), ko)
	p.Module = m
	_, cat := h.repo.Catalogue(k.Target())
	cat.Patches = append(cat.Patches, p)
	must(h, h.operator.Publish(h.Context(), api.Publication(h.repo.Change(cat).Change)))
	return p
}

func (h *house) withdraw(v livepatch.Version) {
	h.Helper()
	_, cat := h.repo.Catalogue(kerneltest.Running().Target())
	cat.Find(v).Withdrawn = &livepatch.Withdrawal{At: time.Now().UTC().Truncate(time.Second), Reason: "it is wrong"}
	must(h, h.operator.Publish(h.Context(), api.Publication(h.repo.Change(cat).Change)))
}

// refresh has the machine ask now and not when the event stream tells it to.
func (h *house) refresh() {
	h.Helper()
	_, err := h.daemon.Refresh(h.Context(), localapi.RefreshRequest{})
	must(h, err)
}

// machine waits until the server's view of the machine is as ok wants it.
func (h *house) machine(what string, ok func(api.Machine) bool) api.Machine {
	h.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		found, err := h.operator.Machines(h.Context(), api.MachineFilter{})
		must(h, err)
		if len(found) == 1 {
			m, err := h.operator.Machine(h.Context(), found[0].ID)
			must(h, err)
			if ok(m) {
				return m
			}
			if time.Now().After(deadline) {
				h.Fatalf("the machine never came to: %s\n%+v\n%v", what, m, h.kernel.Calls())
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestFromTokenToPatchAndBack(t *testing.T) {
	t.Parallel()
	h := build(t)
	stop := h.boot()
	_, err := h.operator.CreateAccount(t.Context(), api.NewAccount{Name: "acme"})
	must(t, err)
	tok, err := h.operator.CreateToken(t.Context(), api.NewToken{Account: "acme"})
	must(t, err)
	info, err := h.operator.Info(t.Context())
	must(t, err)
	_, err = h.daemon.Enable(t.Context(), localapi.EnableRequest{Token: "lp_wrong", Server: h.url, Trust: info.Trust})
	if livepatch.CodeOf(err) != livepatch.CodeUnknownToken {
		t.Errorf("enable with a wrong token: %v", err)
	}
	enabled, err := h.daemon.Enable(t.Context(), localapi.EnableRequest{Token: tok.Secret, Server: h.url, Trust: info.Trust})
	must(t, err)
	if enabled.Account != "acme" || enabled.Trusted != "fingerprint" {
		t.Errorf("enabled as %+v", enabled)
	}
	h.machine("checked in", func(m api.Machine) bool { return m.CheckState == livepatch.Checked })

	one := h.publish(1) // the event stream brings it
	m := h.machine("running the first livepatch", func(m api.Machine) bool {
		return m.Version == one.Version && m.PatchState == livepatch.StateApplied
	})
	if !slices.ContainsFunc(m.Reports, func(r livepatch.Report) bool {
		return r.Kind == livepatch.ReportApplied && r.Version == one.Version && r.Grant != ""
	}) {
		t.Errorf("the load was not reported under its grant: %+v", m.Reports)
	}
	two := h.publish(2)
	h.refresh()
	h.machine("running the second livepatch", func(m api.Machine) bool { return m.Version == two.Version && len(m.Loaded) == 1 })
	if p, err := h.operator.Patch(t.Context(), kerneltest.Running().Target(), two.Version); err != nil || p.Machines != 1 {
		t.Errorf("the operator sees %d machines on it (%v), want 1", p.Machines, err)
	}

	stop()
	h.kernel.Reboot()
	stop = h.boot()
	defer func() { stop() }()
	h.machine("running it again after a reboot", func(m api.Machine) bool { return m.Version == two.Version && m.PatchState == livepatch.StateApplied })

	h.withdraw(two.Version)
	h.refresh()
	h.machine("back on the first livepatch", func(m api.Machine) bool { return m.Version == one.Version })
	h.withdraw(one.Version)
	h.refresh()
	h.machine("unpatched", func(m api.Machine) bool { return m.Version.IsZero() && len(m.Loaded) == 0 })

	_, err = h.daemon.Disable(t.Context())
	must(t, err)
	if left, err := h.operator.Machines(t.Context(), api.MachineFilter{}); err != nil || len(left) != 0 {
		t.Errorf("after disable the server still has %+v (%v)", left, err)
	}
}
