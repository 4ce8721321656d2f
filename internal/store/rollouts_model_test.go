package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

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
		r := f.publishOnly(t, major)
		machine := f.enrol(t, int(major))
		void := map[string]bool{} // ids of grants that a halt or pause ended
		open := ""
		changes := 1
		ctx := context.Background()
		rt.Repeat(map[string]func(*rapid.T){
			"verb": func(rt *rapid.T) {
				verb := rapid.SampledFrom([]string{"start", "pause", "resume", "promote", "expedite"}).Draw(rt, "verb")
				if _, err := s.OperateRollout(ctx, "ann", r.ID, verb, "because"); err == nil {
					changes++
					void[open] = void[open] || verb == "pause"
				} else if livepatch.CodeOf(err) != livepatch.CodeConflict {
					rt.Fatalf("%s: %v", verb, err)
				}
			},
			"halt": func(rt *rapid.T) {
				change, err := s.HaltRollout(ctx, "judge", r.ID, "because", nil)
				must(rt, err)
				if change != nil {
					changes++
				}
				void[open] = true
			},
			"check in": func(rt *rapid.T) {
				c.advance(time.Second)
				out, err := s.CheckIn(ctx, machine, checkIn("b1"), granting(r.ID))
				must(rt, err)
				now, err := s.Rollout(ctx, r.ID)
				must(rt, err)
				moves := now.State.Moving() && !now.Paused
				if (out.Grant != nil) != moves {
					rt.Fatalf("in state %s (paused: %v) the grant is %+v", now.State, now.Paused, out.Grant)
				}
				if out.Grant != nil {
					open = out.Grant.ID
					if void[open] {
						rt.Fatalf("grant %s was made void and is given again", open)
					}
				}
			},
			"": func(rt *rapid.T) {
				now, err := s.Rollout(ctx, r.ID)
				must(rt, err)
				if len(now.Changes) != changes || now.State == rollout.Staged {
					rt.Fatalf("after %d changes the history has %d", changes, len(now.Changes))
				}
			},
		})
		lines, err := s.Audit(ctx, 300)
		must(t, err)
		n := 0
		for _, l := range lines {
			if len(l.Object) > len(r.ID) && l.Object[:len(r.ID)] == r.ID && l.Action != "rollout.stage" {
				n++
			}
		}
		if n != changes {
			rt.Fatalf("%d changes have %d lines in the audit log", changes, n)
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
