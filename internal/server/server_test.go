package server

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/store"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

const operatorCredential = "operator-credential"

var kernel = livepatch.Kernel{Release: "6.1.0-47-cloud-amd64", Version: "#1 SMP Debian 6.1.170-3", Arch: "amd64", BuildID: strings.Repeat("0a", 20)}

// fixture is a server with an operator, an account "acme" of three seats and a
// token, behind real TLS and HTTP/2.
type fixture struct {
	*Server
	repo     *streamtest.Repo
	http     *httptest.Server
	operator *api.Client
	secret   string
	log      *lockedBuffer
	path     string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newServer makes the fixture; change may alter the options.
func newServer(t testing.TB, change func(*Options)) *fixture {
	t.Helper()
	return newServerAt(t, time.Now, change)
}

// newServerAt makes the fixture with another clock.
func newServerAt(t testing.TB, now func() time.Time, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{repo: streamtest.New(t), log: &lockedBuffer{}, path: filepath.Join(t.TempDir(), "server.db")}
	db, err := store.OpenSQLite(t.Context(), f.path, now)
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	must(t, db.AddOperator(t.Context(), "test", "ann", operatorCredential))
	o := Options{
		Store: db, Blobs: f.repo.Store, Stream: f.repo.Publisher, PublicURL: "https://livepatch.example.com", Version: "1.2.3", Now: now,
		Log:            slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		EnrolPerMinute: 1000,
	}
	if change != nil {
		change(&o)
	}
	f.Server = New(o)
	f.http = httptest.NewUnstartedServer(f.Handler())
	f.http.EnableHTTP2 = true
	f.http.StartTLS()
	t.Cleanup(f.http.Close)
	t.Cleanup(f.hub.close)
	f.operator = f.client(t, operatorCredential)
	_, err = f.operator.CreateAccount(t.Context(), api.NewAccount{Name: "acme"})
	must(t, err)
	tok, err := f.operator.CreateToken(t.Context(), api.NewToken{Account: "acme"})
	must(t, err)
	f.secret = tok.Secret
	return f
}

func (f *fixture) client(t testing.TB, credential string) *api.Client {
	t.Helper()
	h, err := api.NewHTTP(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.http.Certificate().Raw}))
	must(t, err)
	t.Cleanup(h.CloseIdleConnections)
	return &api.Client{BaseURL: f.http.URL, Credential: credential, HTTP: h}
}

func enrolment(secret string, n int) api.EnrolRequest {
	return api.EnrolRequest{
		Token: secret, MachineID: fmt.Sprintf("%032x", n), Credential: fmt.Sprintf("%064x", n),
		Hostname: fmt.Sprintf("host%d", n), Kernel: kernel, AgentVersion: "1.0",
	}
}

// enrol enrols machine n and returns its client.
func (f *fixture) enrol(t testing.TB, n int) (*api.Client, string) {
	t.Helper()
	r := enrolment(f.secret, n)
	answer, err := f.client(t, "").Enrol(t.Context(), r)
	must(t, err)
	return f.client(t, r.Credential), answer.ID
}

// publish publishes module as the next livepatch of k, through the API.
func (f *fixture) publish(t testing.TB, k livepatch.Kernel, module string) livepatch.Livepatch {
	t.Helper()
	_, cat := f.repo.Catalogue(k.Target())
	archive, b, err := stream.CompressModule([]byte(module))
	must(t, err)
	must(t, f.operator.PutBlob(t.Context(), api.BlobArchive, b, bytes.NewReader(archive)))
	lp := f.repo.Livepatch(k, uint32(len(cat.Patches)+1), []byte(module))
	cat.Patches = append(cat.Patches, lp)
	must(t, f.operator.Publish(t.Context(), api.Publication(f.repo.Change(cat).Change)))
	return lp
}

func (f *fixture) withdraw(t testing.TB, k livepatch.Kernel, v livepatch.Version) {
	t.Helper()
	_, cat := f.repo.Catalogue(k.Target())
	cat.Find(v).Withdrawn = &livepatch.Withdrawal{At: time.Now().UTC().Truncate(time.Second), Reason: "it panics"}
	must(t, f.operator.Publish(t.Context(), api.Publication(f.repo.Change(cat).Change)))
}

func checkIn(loaded ...livepatch.LoadedPatch) api.CheckInRequest {
	return api.CheckInRequest{Kernel: kernel, BootID: "b1", AgentVersion: "1.0", CheckState: livepatch.Checked, PatchState: livepatch.StateUnknown, Loaded: loaded}
}

func loaded(p livepatch.Livepatch) livepatch.LoadedPatch {
	return livepatch.LoadedPatch{Module: p.Module.Name, Version: p.Version, Enabled: true}
}

// wantCode fails unless err has the code and its text contains all of words.
func wantCode(t testing.TB, err error, code livepatch.Code, words ...string) {
	t.Helper()
	if livepatch.CodeOf(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, livepatch.CodeOf(err), code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not contain %q", err, w)
		}
	}
}

func TestEnrolErrorsReachTheClient(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	anybody, ctx := f.client(t, ""), t.Context()
	_, err := anybody.Enrol(ctx, enrolment("lp_wrong", 1))
	wantCode(t, err, livepatch.CodeUnknownToken, "Unknown Auth-Token")
	once, err := f.operator.CreateToken(ctx, api.NewToken{Account: "acme", MaxUses: 1})
	must(t, err)
	_, err = anybody.Enrol(ctx, enrolment(once.Secret, 1))
	must(t, err)
	_, err = anybody.Enrol(ctx, enrolment(once.Secret, 2))
	wantCode(t, err, livepatch.CodeTokenUsed, "another token")
	must(t, f.operator.RevokeToken(ctx, once.ID))
	_, err = anybody.Enrol(ctx, enrolment(once.Secret, 2))
	wantCode(t, err, livepatch.CodeTokenRevoked, "revoked")
	_, id2 := f.enrol(t, 2)
	f.enrol(t, 3)
	_, err = anybody.Enrol(ctx, enrolment(f.secret, 4))
	wantCode(t, err, livepatch.CodeSeatLimit, "host1", "host2 ("+id2+")", "host3")
	bad := enrolment(f.secret, 2)
	bad.MachineID = "../../etc"
	_, err = anybody.Enrol(ctx, bad)
	wantCode(t, err, livepatch.CodeInvalid, "machine_id")
}

func TestCreatedTokenSaysWhatToType(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	info, err := f.client(t, "").Info(t.Context())
	must(t, err)
	tok, err := f.operator.CreateToken(t.Context(), api.NewToken{Account: "acme", Name: "web"})
	must(t, err)
	want := "livepatch enable " + tok.Secret + " --server https://livepatch.example.com --trust " + info.Trust
	if tok.Enable != want || !strings.HasPrefix(info.Trust, "sha256:") {
		t.Errorf("the command is %q, want %q", tok.Enable, want)
	}
}

func TestCheckInJourney(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	machine, id := f.enrol(t, 1)
	ask := func(r api.CheckInRequest) api.CheckInResponse {
		t.Helper()
		out, err := machine.CheckIn(t.Context(), r)
		must(t, err)
		return out
	}
	if out := ask(checkIn()); out.Grant != nil || out.Supported != livepatch.SupportedNo {
		t.Errorf("with nothing published the answer is %+v", out)
	}
	one := f.publish(t, kernel, "one")
	out := ask(checkIn())
	if out.Grant == nil || out.Grant.Action != livepatch.ActionApply || out.Grant.Version != one.Version || out.Supported != livepatch.SupportedYes || len(out.Outstanding) != 1 {
		t.Fatalf("after a publication the answer is %+v", out)
	}
	done := checkIn(loaded(one))
	done.Reports = []livepatch.Report{{ID: "r1", Kind: livepatch.ReportApplied, Version: one.Version, Grant: out.Grant.ID}}
	if out = ask(done); out.Grant != nil || len(out.Outstanding) != 0 || len(out.Acknowledged) != 1 {
		t.Errorf("after applying it the answer is %+v", out)
	}
	rebuilt := checkIn()
	rebuilt.Kernel.BuildID = strings.Repeat("0b", 20)
	if out = ask(rebuilt); out.Grant != nil || out.Supported != livepatch.SupportedNo {
		t.Errorf("for another binary of the same release the answer is %+v", out)
	}
	ask(checkIn(loaded(one)))
	if p, err := f.operator.Patch(t.Context(), kernel.Target(), one.Version); err != nil || p.Machines != 1 {
		t.Errorf("the patch runs on %d machines (%v), want 1", p.Machines, err)
	}
	f.withdraw(t, kernel, one.Version)
	if out = ask(checkIn(loaded(one))); out.Grant == nil || out.Grant.Action != livepatch.ActionUnload || !strings.Contains(out.Grant.Reason, "it panics") {
		t.Errorf("after a withdrawal the answer is %+v", out)
	}
	must(t, f.operator.RemoveMachine(t.Context(), id))
	_, err := machine.CheckIn(t.Context(), checkIn())
	wantCode(t, err, livepatch.CodeUnauthorized)
}

func TestPatchIsHeldBackWhereItHurt(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	one := f.publish(t, kernel, "one")
	report := func(kind livepatch.ReportKind, code livepatch.Code) func(*api.CheckInRequest) {
		return func(r *api.CheckInRequest) {
			r.Reports = []livepatch.Report{{ID: "r1", Kind: kind, Code: code, Version: one.Version, BootID: "b1"}}
		}
	}
	for i, tt := range []struct {
		name             string
		with             func(*api.CheckInRequest)
		again, afterBoot bool // granted in the same boot, granted after a reboot
	}{
		{"suspect", func(r *api.CheckInRequest) { r.Suspects = []livepatch.Version{one.Version} }, true, true},
		{"rebooted", report(livepatch.ReportRebooted, livepatch.CodeSuspect), false, false},
		{"oopsed", report(livepatch.ReportOopsed, ""), false, false},
		{"refused", report(livepatch.ReportFailed, livepatch.CodeRefused), false, true},
		{"disk full", report(livepatch.ReportFailed, livepatch.CodeDisk), false, false},
	} {
		machine, id := f.enrol(t, i)
		ask := func(r api.CheckInRequest) bool {
			t.Helper()
			out, err := machine.CheckIn(t.Context(), r)
			must(t, err)
			if out.Grant == nil && out.Reason == "" {
				t.Errorf("%s: no grant and no reason", tt.name)
			}
			return out.Grant != nil
		}
		r := checkIn()
		tt.with(&r)
		if ask(r) {
			t.Errorf("%s: the patch was granted all the same", tt.name)
		}
		r = checkIn()
		if got := ask(r); got != tt.again {
			t.Errorf("%s: asked again, granted: %v, want %v", tt.name, got, tt.again)
		}
		r.BootID = "b2"
		if got := ask(r); got != tt.afterBoot {
			t.Errorf("%s: after a reboot, granted: %v, want %v", tt.name, got, tt.afterBoot)
		}
		must(t, f.operator.RemoveMachine(t.Context(), id))
	}
}

func TestEnrolIsRateLimited(t *testing.T) {
	t.Parallel()
	f := newServer(t, func(o *Options) { o.EnrolPerMinute = 3 })
	var err error
	for range 4 {
		_, err = f.client(t, "").Enrol(t.Context(), enrolment("lp_guess", 1))
	}
	wantCode(t, err, livepatch.CodeUnavailable, "too many attempts")
}

func TestLogHasNoSecrets(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	machine, _ := f.enrol(t, 1)
	_, err := machine.CheckIn(t.Context(), checkIn())
	must(t, err)
	_, err = f.client(t, "").Enrol(t.Context(), enrolment("lp_wrong", 1))
	wantCode(t, err, livepatch.CodeUnknownToken)
	text := f.log.String()
	for _, secret := range []string{operatorCredential, f.secret, "lp_wrong", machine.Credential} {
		if strings.Contains(text, secret) {
			t.Errorf("the log contains the secret %q", secret)
		}
	}
	if !strings.Contains(text, "/v1/check-in") {
		t.Error("the log does not tell of a check-in")
	}
}

func TestOperatorLists(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	_, id := f.enrol(t, 1)
	f.enrol(t, 2)
	ctx := t.Context()
	if m, err := f.operator.Machines(ctx, api.MachineFilter{Account: "acme", Kernel: kernel.Release}); err != nil || len(m) != 2 || m[0].ID != id {
		t.Errorf("machines are %+v (%v)", m, err)
	}
	if m, err := f.operator.Machines(ctx, api.MachineFilter{Kernel: "5.10.0-1-amd64"}); err != nil || len(m) != 0 {
		t.Errorf("machines of another kernel are %+v (%v)", m, err)
	}
	_, err := f.operator.Machines(ctx, api.MachineFilter{Account: "nobody"})
	wantCode(t, err, livepatch.CodeNotFound, "nobody")
	if a, err := f.operator.Accounts(ctx); err != nil || len(a) != 1 || a[0].Machines != 2 || a[0].Limit != 3 {
		t.Errorf("accounts are %+v (%v)", a, err)
	}
	if tok, err := f.operator.Tokens(ctx, "acme"); err != nil || len(tok) != 1 || tok[0].Uses != 2 {
		t.Errorf("tokens are %+v (%v)", tok, err)
	}
	if m, err := f.operator.Machine(ctx, "host2"); err != nil || m.Hostname != "host2" {
		t.Errorf("machine host2 is %+v (%v)", m, err)
	}
	if lines, err := f.operator.Audit(ctx, 2); err != nil || len(lines) != 2 || lines[0].Action != "machine.enrol" {
		t.Errorf("audit log is %+v (%v)", lines, err)
	}
	_, err = f.operator.Audit(ctx, 5000)
	wantCode(t, err, livepatch.CodeInvalid, "1000")
	_, err = f.operator.CreateAccount(ctx, api.NewAccount{Name: "acme"})
	wantCode(t, err, livepatch.CodeConflict, "acme")
	_, err = f.operator.CreateAccount(ctx, api.NewAccount{Name: "b", Plan: "gold"})
	wantCode(t, err, livepatch.CodeInvalid, "standard")
}

func TestInternalErrorsStayInside(t *testing.T) {
	t.Parallel()
	f := newServer(t, func(o *Options) {
		o.Decide = func(store.Facts) store.Decision { return store.Decision{} }
	})
	w := httptest.NewRecorder()
	f.problem(w, httptest.NewRequest(http.MethodGet, "/v1/accounts", nil), fmt.Errorf("no such table: accounts"))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "no such table") {
		t.Errorf("our own failure is answered by %d %s", w.Code, w.Body)
	}
	if !strings.Contains(f.log.String(), "no such table") {
		t.Error("our own failure is not in the log")
	}
}

func TestPanicIsOneFailedRequest(t *testing.T) {
	t.Parallel()
	f := newServer(t, func(o *Options) {
		o.Decide = func(store.Facts) store.Decision { panic("the rule is broken") }
	})
	machine, _ := f.enrol(t, 1)
	_, err := machine.CheckIn(t.Context(), checkIn())
	wantCode(t, err, livepatch.CodeInternal, "log")
	if !strings.Contains(f.log.String(), "the rule is broken") {
		t.Error("the panic is not in the log")
	}
	_, err = f.operator.Accounts(t.Context())
	must(t, err)
}

// wait ends the test when ctx is done first.
func wait[T any](t testing.TB, ctx context.Context, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-ctx.Done():
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

// counted is a connection that counts what crosses it.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// TestQuietCheckIsSmall holds the budget of a check that finds nothing new: under
// 2 KB on the wire, TLS included, on the connection that the event stream keeps
// open.
func TestQuietCheckIsSmall(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	one := f.publish(t, kernel, "one")
	machine, _ := f.enrol(t, 1)
	var n atomic.Int64
	machine.HTTP.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return counted{c, &n}, err
	}
	check := func() {
		t.Helper()
		_, err := machine.CheckIn(t.Context(), checkIn(loaded(one)))
		must(t, err)
		got, err := stream.HTTPFetcher{Client: machine.HTTP, Base: machine.BaseURL}.Fetch(t.Context(), "metadata/timestamp.json", f.get(t, "/stream/metadata/timestamp.json", "").Header.Get("ETag"))
		must(t, err)
		if !got.NotModified {
			t.Error("an unchanged timestamp was sent whole")
		}
	}
	check()
	before := n.Load()
	check()
	if used := n.Load() - before; used > 2000 {
		t.Errorf("a check that found nothing new took %d bytes", used)
	} else {
		t.Logf("a check that found nothing new took %d bytes", used)
	}
}

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	machine, _ := f.enrol(t, 1)
	_, err := machine.CheckIn(t.Context(), checkIn())
	must(t, err)
	resp, err := f.operator.HTTP.Get(f.http.URL + "/metrics")
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	for _, want := range []string{`livepatch_enrolments_total{result="ok"} 1`, `livepatch_check_ins_total{granted="none"} 1`, "livepatch_event_streams 0"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics have no %q", want)
		}
	}
}
