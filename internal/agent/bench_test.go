package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/elfobj"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
	"livepatch/internal/stream/streamtest"
)

const (
	goodToken = "lp_good"
	serverURL = "https://livepatch.test"
)

// bench is a machine with a fake kernel, a server that can misbehave, a real
// signed stream, and the agent between them.
type bench struct {
	testing.TB
	kern *kerneltest.Kernel
	repo *streamtest.Repo
	srv  *fakeServer
	o    Options
	a    *Agent
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{TB: t, kern: kerneltest.New(t), repo: streamtest.New(t)}
	b.srv = &fakeServer{stream: b.repo.Handler(), reports: map[string]livepatch.Report{}, machines: map[string]api.EnrolRequest{}, events: make(chan struct{}, 1), broken: make(chan struct{})}
	dir := t.TempDir()
	b.o = Options{
		StateDir: filepath.Join(dir, "state"), ConfigFile: filepath.Join(dir, "livepatch.yaml"),
		Kernel: b.kern.System(), Version: "1.2.3", Random: rand.Reader, Jitter: mathrand.NewPCG(1, 2),
		HTTP: func(HTTPOptions) (*http.Client, error) { return &http.Client{Transport: direct{b.srv}}, nil },
		Log:  slog.New(slog.DiscardHandler),
	}
	b.boot()
	return b
}

// boot starts the daemon: a new agent on the same state.
func (b *bench) boot() {
	b.Helper()
	var err error
	b.a, err = New(b.o)
	b.ok(err)
	b.ok(b.a.Start(b.Context()))
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) enable() {
	b.Helper()
	_, err := b.a.enable(b.Context(), localapi.EnableRequest{Token: goodToken, Server: serverURL})
	b.ok(err)
}

// refresh checks, and returns the status afterwards.
func (b *bench) refresh() localapi.Status {
	b.Helper()
	r, err := b.a.refresh(b.Context(), localapi.RefreshRequest{})
	b.ok(err)
	return r.Status
}

func (b *bench) status() localapi.Status {
	b.Helper()
	s, err := b.a.statusNow(time.Now())
	b.ok(err)
	return s
}

// module is a real livepatch module for the fake's kernel, under another name.
func (b *bench) module(n int) []byte {
	b.Helper()
	ko, err := os.ReadFile("../elfobj/testdata/two_objects.ko")
	b.ok(err)
	return bytes.ReplaceAll(ko, []byte("two_objects"), []byte(moduleName(n)))
}

// moduleName has as many letters as the fixture's own.
func moduleName(n int) string { return fmt.Sprintf("lp_test_%03d", n) }

func version(n int) livepatch.Version { return livepatch.Version{Major: uint32(n), Minor: 1} }

// publish signs version n.1 and has the server grant it. change may alter what is
// signed about it.
func (b *bench) publish(n int, change ...func(*livepatch.Livepatch)) livepatch.Livepatch {
	b.Helper()
	return b.publishFile(n, b.module(n), change...)
}

func (b *bench) publishFile(n int, ko []byte, change ...func(*livepatch.Livepatch)) livepatch.Livepatch {
	b.Helper()
	running := kerneltest.Running()
	p := b.repo.Livepatch(running, uint32(n), ko)
	p.Module.Name = moduleName(n)
	if m, err := elfobj.ParseModule(ko); err == nil {
		p.Module = m
	}
	for _, f := range change {
		f(&p)
	}
	_, cat := b.repo.Catalogue(running.Target())
	cat.Patches = append(cat.Patches, p)
	b.repo.Accept(b.repo.Change(cat))
	b.srv.offer(version(n))
	return p
}

// loads are the names of the modules that the kernel was given.
func (b *bench) loads() []string {
	var names []string
	for _, call := range b.kern.Calls() {
		if name, ok := strings.CutPrefix(call, "load "); ok {
			names = append(names, name)
		}
	}
	return names
}

func (b *bench) wantLoads(names ...string) {
	b.Helper()
	if got := b.loads(); !slices.Equal(got, names) {
		b.Errorf("the kernel was given %q, want %q", got, names)
	}
}

// wantRunning checks which livepatches the kernel has in force.
func (b *bench) wantRunning(names ...string) {
	b.Helper()
	patches, err := b.kern.System().Loaded()
	b.ok(err)
	var got []string
	for _, p := range patches {
		if p.Enabled && !p.Transition {
			got = append(got, p.Name)
		}
	}
	if !slices.Equal(got, names) {
		b.Errorf("in force are %q, want %q", got, names)
	}
}

// wantProblem checks that the status names a problem.
func (b *bench) wantProblem(code livepatch.Code, part string) {
	b.Helper()
	s := b.status()
	for _, p := range s.Problems {
		if p.Code == code && strings.Contains(p.Message, part) {
			return
		}
	}
	b.Errorf("no problem with code %q and text %q in %+v", code, part, s.Problems)
}

func wantError(t testing.TB, err error, code livepatch.Code, part string) {
	t.Helper()
	if livepatch.CodeOf(err) != code || !strings.Contains(fmt.Sprint(err), part) {
		t.Errorf("error is %q (%s), want code %s and text %q", err, livepatch.CodeOf(err), code, part)
	}
}

// errKilled stands for kill -9.
var errKilled = errors.New("killed")

// killAt runs f and kills the daemon at the point. It returns false when the point
// was not reached.
func (b *bench) killAt(point string, f func()) (killed bool) {
	b.Helper()
	b.o.Crash = func(at string) {
		if at == point {
			panic(errKilled)
		}
	}
	b.a.o.Crash = b.o.Crash
	defer func() {
		b.o.Crash = nil
		if r := recover(); r != nil {
			if r != errKilled {
				panic(r)
			}
			killed = true
		}
	}()
	f()
	return false
}

// orderly shuts the machine down as systemd does and boots it again.
func (b *bench) orderly() {
	b.Helper()
	b.ok(MarkOrderly(b.o.StateDir, b.o.Kernel))
	b.kern.Reboot()
}

// fakeServer speaks package api and can be told to misbehave.
type fakeServer struct {
	mu     sync.Mutex
	stream http.Handler
	events chan struct{}
	broken chan struct{}
	// bytes counts the bodies of requests and answers.
	bytes atomic.Int64
	// grant is what the next check-ins get until a report answers it.
	grant *livepatch.Grant
	// enrolError is what enrolment answers; down makes every request fail, lose
	// makes check-ins work but their answers vanish.
	enrolError *livepatch.Error
	down, lose bool
	// spoil may change stream answers.
	spoil func(path string, body []byte) []byte
	// skew is added to the server's clock.
	skew time.Duration

	machines map[string]api.EnrolRequest
	reports  map[string]livepatch.Report
	order    []livepatch.ReportKind
	checks   []api.CheckInRequest
	listens  int
}

// offer makes the server grant a version; the zero one nothing.
func (s *fakeServer) offer(v livepatch.Version) {
	s.give(&livepatch.Grant{ID: "grant-" + v.String(), Action: livepatch.ActionApply, Version: v, Expires: time.Now().Add(10 * time.Minute)})
}

func (s *fakeServer) give(g *livepatch.Grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grant = g
}

func (s *fakeServer) set(f func(*fakeServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// breakEvents ends the event stream of whoever listens.
func (s *fakeServer) breakEvents() { s.broken <- struct{}{} }

// kinds are the reports that arrived, in order, each once.
func (s *fakeServer) kinds() []livepatch.ReportKind {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func (s *fakeServer) report(kind livepatch.ReportKind) (livepatch.Report, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.reports {
		if r.Kind == kind {
			return r, true
		}
	}
	return livepatch.Report{}, false
}

func (s *fakeServer) lastCheck() api.CheckInRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.checks) == 0 {
		return api.CheckInRequest{}
	}
	return s.checks[len(s.checks)-1]
}

func (s *fakeServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.checks)
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/stream/"):
		s.serveStream(w, r)
	case r.URL.Path == "/v1/events":
		s.serveEvents(w, r)
	case r.URL.Path == "/v1/info":
		reply(w, http.StatusOK, api.Info{Version: "1", Time: time.Now().Add(s.skew)})
	case r.URL.Path == "/v1/machines":
		s.enrol(w, r)
	case r.URL.Path == "/v1/check-in":
		s.checkIn(w, r)
	case r.URL.Path == "/v1/machine":
		s.set(func(s *fakeServer) { delete(s.machines, bearer(r)) })
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

func bearer(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func (s *fakeServer) enrol(w http.ResponseWriter, r *http.Request) {
	var req api.EnrolRequest
	if json.NewDecoder(r.Body).Decode(&req) != nil || len(req.Credential) != 64 || req.MachineID == "" {
		refuse(w, http.StatusBadRequest, livepatch.CodeInvalid, "malformed")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.enrolError != nil:
		refuse(w, http.StatusForbidden, s.enrolError.Code, s.enrolError.Message)
	case req.Token != goodToken:
		refuse(w, http.StatusUnauthorized, livepatch.CodeUnknownToken, "Unknown Auth-Token: check that it was copied whole")
	default:
		s.machines[req.Credential] = req
		reply(w, http.StatusCreated, api.EnrolResponse{ID: "m1", Account: "home", Plan: "community", Tier: livepatch.TierGeneral})
	}
}

func (s *fakeServer) checkIn(w http.ResponseWriter, r *http.Request) {
	var req api.CheckInRequest
	if json.NewDecoder(r.Body).Decode(&req) != nil {
		refuse(w, http.StatusBadRequest, livepatch.CodeInvalid, "malformed")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.machines[bearer(r)]; !known {
		refuse(w, http.StatusUnauthorized, livepatch.CodeUnauthorized, "unknown machine")
		return
	}
	s.checks = append(s.checks, req)
	resp := api.CheckInResponse{Time: time.Now().Add(s.skew), Supported: livepatch.SupportedYes, Tier: livepatch.TierGeneral, NextSeconds: 3600, Grant: s.grant}
	for _, rep := range req.Reports {
		if _, again := s.reports[rep.ID]; !again {
			s.reports[rep.ID] = rep
			s.order = append(s.order, rep.Kind)
		}
		resp.Acknowledged = append(resp.Acknowledged, rep.ID)
		if s.grant != nil && rep.Grant == s.grant.ID {
			s.grant, resp.Grant = nil, nil
		}
	}
	if s.lose {
		panic(http.ErrAbortHandler)
	}
	reply(w, http.StatusOK, resp)
}

func (s *fakeServer) serveStream(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	spoil := s.spoil
	s.mu.Unlock()
	if spoil == nil {
		s.stream.ServeHTTP(w, r)
		return
	}
	r.Header.Del("If-None-Match")
	rec := &recorder{header: http.Header{}}
	s.stream.ServeHTTP(rec, r)
	body := spoil(r.URL.Path, rec.body.Bytes())
	if body == nil {
		http.NotFound(w, r)
		return
	}
	if rec.status != 0 {
		w.WriteHeader(rec.status)
	}
	_, _ = w.Write(body)
}

func (s *fakeServer) serveEvents(w http.ResponseWriter, r *http.Request) {
	s.set(func(s *fakeServer) { s.listens++ })
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	for {
		select {
		case <-r.Context().Done():
			return
		case <-s.events:
			fmt.Fprintf(w, "event: %s\ndata: {}\n\n", api.EventCheck)
		case <-s.broken:
			return
		case <-time.After(30 * time.Second):
			fmt.Fprint(w, ": alive\n\n")
		}
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code livepatch.Code, detail string) {
	reply(w, status, api.Problem{Status: status, Code: code, Detail: detail})
}

// direct is an http.RoundTripper that calls a handler without a network, so that
// testing/synctest can tell when everybody waits. Answers stream.
type direct struct{ srv *fakeServer }

func (d direct) RoundTrip(req *http.Request) (*http.Response, error) {
	d.srv.mu.Lock()
	down := d.srv.down
	d.srv.mu.Unlock()
	if down {
		return nil, errors.New("connection refused")
	}
	if req.Body == nil {
		req.Body = http.NoBody
	}
	d.srv.bytes.Add(max(0, req.ContentLength))
	r, w := io.Pipe()
	started := make(chan struct{})
	rec := &recorder{header: http.Header{}, pipe: w, started: started, bytes: &d.srv.bytes}
	go func() {
		defer func() {
			if e := recover(); e != nil {
				_ = w.CloseWithError(io.ErrUnexpectedEOF)
				rec.start(0)
				return
			}
			rec.start(http.StatusOK)
			_ = w.Close()
		}()
		d.srv.ServeHTTP(rec, req)
	}()
	select {
	case <-started:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if rec.status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	context.AfterFunc(req.Context(), func() { _ = r.CloseWithError(req.Context().Err()) })
	return &http.Response{StatusCode: rec.status, Status: http.StatusText(rec.status), Header: rec.header, Body: r, Request: req, ContentLength: -1}, nil
}

// recorder is an http.ResponseWriter into a pipe, or into memory without one.
type recorder struct {
	header  http.Header
	status  int
	body    bytes.Buffer
	pipe    *io.PipeWriter
	started chan struct{}
	bytes   *atomic.Int64
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) start(status int) {
	if r.status == 0 {
		r.status = status
		if r.started != nil {
			close(r.started)
			r.started = nil
		}
	}
}

func (r *recorder) WriteHeader(status int) { r.start(status) }

func (r *recorder) Write(p []byte) (int, error) {
	r.start(http.StatusOK)
	if r.pipe == nil {
		return r.body.Write(p)
	}
	r.bytes.Add(int64(len(p)))
	return r.pipe.Write(p)
}
