package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// rolloutModel is one rollout, one machine, and what should be true of them.
type rolloutModel struct {
	*fixture
	id, machine string
	// open is the latest grant; void are those that a halt or a pause ended.
	open string
	void map[string]bool
	// changes is how often the rollout changed.
	changes int
}

func (m *rolloutModel) verb(t *rapid.T) {
	verb := rapid.SampledFrom([]string{"start", "pause", "resume", "promote", "expedite"}).Draw(t, "verb")
	_, err := m.OperateRollout(context.Background(), "ann", m.id, verb, "because")
	switch livepatch.CodeOf(err) {
	case "":
		m.changes++
		m.void[m.open] = m.void[m.open] || verb == "pause"
	case livepatch.CodeConflict:
	default:
		t.Fatalf("%s: %v", verb, err)
	}
}

func (m *rolloutModel) halt(t *rapid.T) {
	change, err := m.HaltRollout(context.Background(), "judge", m.id, "because", nil)
	must(t, err)
	if change != nil {
		m.changes++
	}
	m.void[m.open] = true
}

func (m *rolloutModel) ask(t *rapid.T) {
	ctx := context.Background()
	m.clock.advance(time.Second)
	out, err := m.CheckIn(ctx, m.machine, checkIn("b1"), granting(m.id))
	must(t, err)
	now, err := m.Rollout(ctx, m.id)
	must(t, err)
	if moves := now.State.Moving() && !now.Paused; (out.Grant != nil) != moves {
		t.Fatalf("in state %s (paused: %v) the grant is %+v", now.State, now.Paused, out.Grant)
	}
	if out.Grant == nil {
		return
	}
	if m.open = out.Grant.ID; m.void[m.open] {
		t.Fatalf("grant %s was made void and is given again", m.open)
	}
}

func (m *rolloutModel) check(t *rapid.T) {
	now, err := m.Rollout(context.Background(), m.id)
	must(t, err)
	if len(now.Changes) != m.changes || now.State == rollout.Staged {
		t.Fatalf("after %d changes the history has %d, and the state is %s", m.changes, len(now.Changes), now.State)
	}
}

// TestNoVerbsLeadToAGrantAfterAHalt does random things to rollouts: whatever was
// done before, a rollout that does not move grants nothing, no grant from before a
// halt is good after it, and every change has one line in the audit log.
func TestNoVerbsLeadToAGrantAfterAHalt(t *testing.T) {
	t.Parallel()
	c := newClock()
	s, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "server.db"), c.now)
	must(t, err)
	defer s.Close()
	f := &fixture{Store: s, clock: c}
	_, err = f.CreateAccount(t.Context(), "test", api.NewAccount{Name: "acme", Limit: 1000})
	must(t, err)
	_, f.secret, err = f.CreateToken(t.Context(), "test", api.NewToken{Account: "acme"})
	must(t, err)
	var major uint32
	rapid.Check(t, func(rt *rapid.T) {
		major++
		m := &rolloutModel{fixture: f, id: f.publishOnly(t, major).ID, machine: f.enrol(t, int(major)), void: map[string]bool{}, changes: 1}
		rt.Repeat(map[string]func(*rapid.T){"verb": m.verb, "halt": m.halt, "check in": m.ask, "": m.check})
		lines, err := s.Audit(context.Background(), 300)
		must(t, err)
		n := 0
		for _, l := range lines {
			if strings.HasPrefix(l.Object, m.id) && l.Action != "rollout.stage" {
				n++
			}
		}
		if n != m.changes {
			rt.Fatalf("%d changes have %d lines in the audit log", m.changes, n)
		}
	})
}

// publishOnly publishes a catalogue of one patch and returns its rollout.
func (f *fixture) publishOnly(t testing.TB, major uint32) api.Rollout {
	t.Helper()
	ctx := t.Context()
	k := kernel.Target()
	p := store.PendingPublication{ID: fmt.Sprintf("publication-%d", major), Actor: "operator ann"}
	_, err := f.BeginPublication(ctx, p)
	must(t, err)
	must(t, f.CompletePublication(ctx, p, []livepatch.Catalogue{{Kernel: k, Patches: []livepatch.Livepatch{patch(major)}}}))
	h, err := f.PatchHealth(ctx, k, livepatch.Version{Major: major, Minor: 1})
	must(t, err)
	return *h.Rollout
}
