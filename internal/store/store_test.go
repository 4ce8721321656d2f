package store_test

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/store"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fixture is a store in a temporary folder with one account and one token.
type fixture struct {
	*store.Store
	clock *clock
	path  string
	// account is the id of "acme", on the community plan: three seats.
	account string
	token   api.Token
	secret  string
}

func open(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{clock: newClock(), path: filepath.Join(t.TempDir(), "server.db")}
	var err error
	f.Store, err = store.OpenSQLite(t.Context(), f.path, f.clock.now)
	must(t, err)
	t.Cleanup(func() { must(t, f.Close()) })
	a, err := f.CreateAccount(t.Context(), "test", api.NewAccount{Name: "acme"})
	must(t, err)
	f.account = a.ID
	f.token, f.secret, err = f.CreateToken(t.Context(), "test", api.NewToken{Account: "acme"})
	must(t, err)
	return f
}

func must(t interface {
	Helper()
	Fatal(...any)
}, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
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

var kernel = livepatch.Kernel{
	Release: "6.1.0-47-cloud-amd64", Version: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)",
	Arch: "amd64", BuildID: strings.Repeat("0a", 20),
}

// enrolment is the request of machine number n.
func enrolment(secret string, n int) api.EnrolRequest {
	return api.EnrolRequest{
		Token: secret, MachineID: fmt.Sprintf("%032x", n), Credential: fmt.Sprintf("%064x", n),
		Hostname: fmt.Sprintf("host%d", n), Kernel: kernel, AgentVersion: "1.0",
	}
}

func (f *fixture) enrol(t testing.TB, n int) string {
	t.Helper()
	answer, _, err := f.Enrol(t.Context(), enrolment(f.secret, n))
	must(t, err)
	return answer.ID
}

func TestEnrolRefusals(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	_, once, err := f.CreateToken(ctx, "test", api.NewToken{Account: "acme", MaxUses: 1})
	must(t, err)
	soon := f.clock.now().Add(time.Hour)
	_, brief, err := f.CreateToken(ctx, "test", api.NewToken{Account: f.account, Expires: &soon})
	must(t, err)
	gone, revoked, err := f.CreateToken(ctx, "test", api.NewToken{Account: "acme"})
	must(t, err)
	must(t, f.RevokeToken(ctx, "test", gone.ID))
	must(t, f.RevokeToken(ctx, "test", gone.ID))

	_, created, err := f.Enrol(ctx, enrolment(once, 1))
	must(t, err)
	if !created {
		t.Error("the first enrolment of a machine is not told as new")
	}
	_, _, err = f.Enrol(ctx, enrolment(once, 2))
	wantCode(t, err, livepatch.CodeTokenUsed, "for 1 machine,")
	_, created, err = f.Enrol(ctx, enrolment(once, 1))
	must(t, err)
	if created {
		t.Error("a repeated enrolment is told as a new machine")
	}
	_, _, err = f.Enrol(ctx, enrolment("lp_wrong", 2))
	wantCode(t, err, livepatch.CodeUnknownToken, "Unknown Auth-Token")
	_, _, err = f.Enrol(ctx, enrolment(revoked, 2))
	wantCode(t, err, livepatch.CodeTokenRevoked, "revoked")
	f.clock.advance(time.Hour)
	_, _, err = f.Enrol(ctx, enrolment(brief, 2))
	wantCode(t, err, livepatch.CodeTokenRevoked, "expired")
	stolen := enrolment(f.secret, 2)
	stolen.Credential = enrolment(f.secret, 1).Credential
	_, _, err = f.Enrol(ctx, stolen)
	wantCode(t, err, livepatch.CodeConflict, "another machine")
	if all, err := f.Machines(ctx, api.MachineFilter{}, "", 10); err != nil || len(all) != 1 {
		t.Errorf("after refusals there are machines %v (%v), want one", all, err)
	}
}

func TestSeatsTakenNamesHolders(t *testing.T) {
	t.Parallel()
	f := open(t)
	var words []string
	for n := range 3 {
		words = append(words, fmt.Sprintf("host%d (%s)", n, f.enrol(t, n)))
	}
	_, _, err := f.Enrol(t.Context(), enrolment(f.secret, 3))
	wantCode(t, err, livepatch.CodeSeatLimit, append(words, "acme", "3 seats")...)
	must(t, f.Leave(t.Context(), f.enrol(t, 1)))
	f.enrol(t, 3)
}

func TestEnrolAgainReplacesCredential(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	again := enrolment(f.secret, 1)
	again.Credential = strings.Repeat("f", 64)
	answer, created, err := f.Enrol(t.Context(), again)
	must(t, err)
	if answer.ID != id || created {
		t.Errorf("enrolled again as %s (new: %v), want %s", answer.ID, created, id)
	}
	_, err = f.MachineByCredential(t.Context(), store.Hash(enrolment("", 1).Credential))
	wantCode(t, err, livepatch.CodeUnauthorized)
	if got, err := f.MachineByCredential(t.Context(), store.Hash(again.Credential)); err != nil || got != id {
		t.Errorf("new credential belongs to %q (%v), want %s", got, err, id)
	}
}

func TestParallelEnrolKeepsLimits(t *testing.T) {
	t.Parallel()
	f := open(t)
	_, five, err := f.CreateToken(t.Context(), "test", api.NewToken{Account: "acme", MaxUses: 2})
	must(t, err)
	var (
		wg sync.WaitGroup
		mu sync.Mutex
		ok int
	)
	for n := range 16 {
		secret := f.secret
		if n%2 == 0 {
			secret = five
		}
		wg.Go(func() {
			if _, _, err := f.Enrol(t.Context(), enrolment(secret, n)); err == nil {
				mu.Lock()
				ok++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	accounts, err := f.Accounts(t.Context())
	must(t, err)
	if ok != 3 || accounts[0].Machines != 3 {
		t.Errorf("%d enrolments succeeded, %d machines are there; the plan has 3 seats", ok, accounts[0].Machines)
	}
	tokens, err := f.Tokens(t.Context(), "acme")
	must(t, err)
	for _, tok := range tokens {
		if tok.MaxUses > 0 && tok.Uses > tok.MaxUses {
			t.Errorf("token %s was used %d times, it was for %d", tok.ID, tok.Uses, tok.MaxUses)
		}
	}
}

func TestMachineByOtherNames(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	for _, ref := range []string{id, "host1", fmt.Sprintf("%032x", 1)} {
		m, err := f.Machine(t.Context(), ref)
		must(t, err)
		if m.ID != id {
			t.Errorf("machine %q is %s, want %s", ref, m.ID, id)
		}
	}
	twin := enrolment(f.secret, 2)
	twin.Hostname = "host1"
	other, _, err := f.Enrol(t.Context(), twin)
	must(t, err)
	_, err = f.Machine(t.Context(), "host1")
	wantCode(t, err, livepatch.CodeConflict, id, other.ID)
	_, err = f.RemoveMachine(t.Context(), "test", "host1")
	wantCode(t, err, livepatch.CodeConflict)
	_, err = f.Machine(t.Context(), "host9")
	wantCode(t, err, livepatch.CodeNotFound)
}

func TestAuditNamesActors(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	_, err := f.RemoveMachine(t.Context(), "operator ann", id)
	must(t, err)
	lines, err := f.Audit(t.Context(), 10)
	must(t, err)
	var got []string
	for _, l := range lines {
		got = append(got, l.Actor+": "+l.Action)
		if strings.Contains(l.Detail+l.Object, f.secret) {
			t.Errorf("audit line %v has a secret in it", l)
		}
	}
	want := []string{"operator ann: machine.remove", "token " + f.token.ID + ": machine.enrol", "test: token.create", "test: account.create"}
	if !slices.Equal(got, want) {
		t.Errorf("audit log is %q, want %q", got, want)
	}
}

// commits counts what other connections have committed to the file.
func commits(t testing.TB, path string) func() int {
	db, err := sql.Open("sqlite", path)
	must(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { must(t, db.Close()) })
	return func() int {
		var n int
		must(t, db.QueryRow(`PRAGMA data_version`).Scan(&n))
		return n
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	t.Parallel()
	c := newClock()
	path := filepath.Join(t.TempDir(), "server.db")
	s, err := store.OpenSQLite(t.Context(), path, c.now)
	must(t, err)
	must(t, s.AddOperator(t.Context(), "init", "ann", "secret"))
	wantCode(t, s.AddOperator(t.Context(), "init", "ann", "other"), livepatch.CodeConflict)
	must(t, s.Close())
	s, err = store.OpenSQLite(context.Background(), path, c.now)
	must(t, err)
	defer s.Close()
	if name, err := s.OperatorByCredential(t.Context(), store.Hash("secret")); err != nil || name != "ann" {
		t.Errorf("operator is %q (%v), want ann", name, err)
	}
	_, err = s.OperatorByCredential(t.Context(), store.Hash("other"))
	wantCode(t, err, livepatch.CodeUnauthorized)
}

// TestAccountNames: names go into commands that people copy.
func TestAccountNames(t *testing.T) {
	t.Parallel()
	s := open(t)
	for name, ok := range map[string]bool{
		"example.com": true, "O'Neill & Sons": false, "O'Neill and Sons": true, "Bäckerei_7": true, "ops@example.com": true,
		"": false, "bad name!": false, " acme": false, "acme ": false, "-acme": false, "a\nb": false, "a\x1b[2J": false, "$(id)": false,
	} {
		_, err := s.CreateAccount(t.Context(), "test", api.NewAccount{Name: name})
		if ok != (err == nil) || !ok && livepatch.CodeOf(err) != livepatch.CodeInvalid {
			t.Errorf("account %q: %v", name, err)
		}
	}
}
