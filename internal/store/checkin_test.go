package store_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/store"
)

// stay is the rule that grants nothing.
func stay(store.Facts) store.Decision { return store.Decision{} }

// apply returns a rule that grants v.
func apply(v livepatch.Version) store.Decide {
	return func(f store.Facts) store.Decision {
		return store.Decision{Action: livepatch.ActionApply, Version: v, Expires: f.Now.Add(10 * time.Minute)}
	}
}

func checkIn(boot string) api.CheckInRequest {
	return api.CheckInRequest{Kernel: kernel, BootID: boot, CheckState: livepatch.Checked, PatchState: livepatch.StateNothingToApply}
}

func TestUnchangedCheckInWritesNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	_, err := f.CheckIn(t.Context(), id, checkIn("b1"), stay)
	must(t, err)
	count := commits(t, f.path)
	before := count()
	f.clock.advance(time.Hour)
	req := checkIn("b1")
	req.BootTime = f.clock.now() // trembles with every check-in
	_, err = f.CheckIn(t.Context(), id, req, stay)
	must(t, err)
	if count() != before {
		t.Error("a check-in that changed nothing was written to the disk")
	}
	m, err := f.Machine(t.Context(), id)
	must(t, err)
	if !m.LastSeen.Equal(f.clock.now()) {
		t.Errorf("last seen at %v before a flush, want %v", m.LastSeen, f.clock.now())
	}
	must(t, f.Flush(t.Context()))
	if count() == before {
		t.Error("a flush wrote nothing")
	}
	after := count()
	must(t, f.Flush(t.Context()))
	if count() != after {
		t.Error("a flush without news wrote something")
	}
	if m, err := f.Machine(t.Context(), id); err != nil || !m.LastSeen.Equal(f.clock.now()) {
		t.Errorf("last seen at %v after the flush (%v), want %v", m.LastSeen, err, f.clock.now())
	}
}

func TestCheckInKeepsState(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	v := livepatch.Version{Major: 7, Minor: 1}
	req := checkIn("b1")
	req.PatchState, req.Problem = livepatch.StateApplied, "disk is full"
	req.Loaded = []livepatch.LoadedPatch{{Module: "lp_7_1", Version: v, Enabled: true}, {Module: "foreign", Enabled: true}}
	req.Suspects = []livepatch.Version{{Major: 6, Minor: 1}}
	_, err := f.CheckIn(t.Context(), id, req, stay)
	must(t, err)
	m, err := f.Machine(t.Context(), "host1")
	must(t, err)
	if m.Version != v || m.PatchState != livepatch.StateApplied || m.Problem != "disk is full" || len(m.Loaded) != 2 || len(m.Suspects) != 1 || m.BootID != "b1" {
		t.Errorf("machine after check-in is %+v", m)
	}
	_, err = f.CheckIn(t.Context(), "m-unknown", req, stay)
	wantCode(t, err, livepatch.CodeUnauthorized, "enable it again")
}

func TestReportsAreIdempotent(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	v := livepatch.Version{Major: 7, Minor: 1}
	req := checkIn("b1")
	req.Reports = []livepatch.Report{
		{ID: "r1", Kind: livepatch.ReportApplied, Version: v, BootID: "b1"},
		{ID: "r2", Kind: livepatch.ReportOopsed, Version: v, BootID: "b1", Detail: "BUG at fs/inode.c"},
	}
	for range 2 {
		out, err := f.CheckIn(t.Context(), id, req, stay)
		must(t, err)
		if fmt.Sprint(out.Acknowledged) != "[r1 r2]" {
			t.Errorf("acknowledged %v, want both reports", out.Acknowledged)
		}
	}
	m, err := f.Machine(t.Context(), id)
	must(t, err)
	if len(m.Reports) != 2 || m.Reports[0].ID != "r2" {
		t.Errorf("stored reports are %+v, want r2 and r1 once each", m.Reports)
	}
	lines, err := f.Audit(t.Context(), 1)
	must(t, err)
	if lines[0].Action != "report.oopsed" || !strings.Contains(lines[0].Detail, "fs/inode.c") || lines[0].Actor != "machine "+id {
		t.Errorf("bad news is not in the audit log: %+v", lines[0])
	}
}

func TestRuleSeesReportsOfTheSameCheckIn(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	v := livepatch.Version{Major: 7, Minor: 1}
	req := checkIn("b1")
	req.Reports = []livepatch.Report{{ID: "r1", Kind: livepatch.ReportFailed, Code: livepatch.CodeRefused, Version: v, BootID: "b1"}}
	var seen []store.Facts
	look := func(f store.Facts) store.Decision { seen = append(seen, f); return store.Decision{} }
	_, err := f.CheckIn(t.Context(), id, req, look)
	must(t, err)
	req.Reports = nil
	_, err = f.CheckIn(t.Context(), id, req, look)
	must(t, err)
	for i, facts := range seen {
		if len(facts.Attempts) != 1 || facts.Attempts[0].Code != livepatch.CodeRefused || facts.Plan != "community" {
			t.Errorf("call %d saw %+v, want one failed attempt", i, facts)
		}
	}
}

func TestGrantIsGivenOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	v := livepatch.Version{Major: 7, Minor: 1}
	grant := func(req api.CheckInRequest, v livepatch.Version) *livepatch.Grant {
		t.Helper()
		out, err := f.CheckIn(t.Context(), id, req, apply(v))
		must(t, err)
		if out.Grant == nil || out.Grant.Version != v {
			t.Fatalf("grant is %+v, want %s", out.Grant, v)
		}
		return out.Grant
	}
	first := grant(checkIn("b1"), v)
	f.clock.advance(2 * time.Minute)
	if again := grant(checkIn("b1"), v); again.ID != first.ID || !again.Expires.Equal(first.Expires) {
		t.Errorf("asked again, the machine got %+v, want the open grant %+v", again, first)
	}
	if other := grant(checkIn("b1"), livepatch.Version{Major: 8, Minor: 1}); other.ID == first.ID {
		t.Error("another version came under the same grant")
	}
	second := grant(checkIn("b1"), v)
	f.clock.advance(6 * time.Minute)
	third := grant(checkIn("b1"), v)
	if third.ID == second.ID {
		t.Error("a grant with little time left was not renewed")
	}
	req := checkIn("b1")
	req.Reports = []livepatch.Report{{ID: "r1", Kind: livepatch.ReportUnloaded, Version: v, Grant: third.ID}}
	fourth := grant(req, v)
	if fourth.ID == third.ID {
		t.Error("a grant that was reported on was given again")
	}
	if grant(checkIn("b1"), v).ID != fourth.ID {
		t.Error("the open grant was not given again")
	}
}

func TestRemovedMachineIsForgotten(t *testing.T) {
	t.Parallel()
	f := open(t)
	id := f.enrol(t, 1)
	req := checkIn("b1")
	req.Reports = []livepatch.Report{{ID: "r1", Kind: livepatch.ReportApplied, Version: livepatch.Version{Major: 7}}}
	_, err := f.CheckIn(t.Context(), id, req, apply(livepatch.Version{Major: 7, Minor: 1}))
	must(t, err)
	must(t, f.Leave(t.Context(), id))
	must(t, f.Leave(t.Context(), id))
	_, err = f.CheckIn(t.Context(), id, checkIn("b1"), stay)
	wantCode(t, err, livepatch.CodeUnauthorized)
	must(t, f.Flush(t.Context()))
}

func patch(major uint32) livepatch.Livepatch {
	return livepatch.Livepatch{
		Version: livepatch.Version{Major: major, Minor: 1}, BuildIDs: []string{kernel.BuildID},
		Module: livepatch.Module{Name: fmt.Sprintf("lp_%d", major), VerMagic: kernel.Release + " SMP", Size: 1},
		Fixes:  []livepatch.Fix{{CVE: "CVE-2026-1234", Priority: livepatch.PriorityHigh}},
	}
}

func TestPublicationIsCompletedOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	ctx := t.Context()
	p := store.PendingPublication{ID: "0123456789abcdef", Actor: "operator ann", Publication: api.Publication{Reason: "CVE-2026-1234", Metadata: map[string][]byte{"targets.json": []byte("{}")}}}
	for range 2 {
		if todo, err := f.BeginPublication(ctx, p); err != nil || !todo {
			t.Fatalf("begin: %v %v, want it to be still to do", todo, err)
		}
	}
	pending, err := f.PendingPublications(ctx)
	must(t, err)
	if len(pending) != 1 || string(pending[0].Publication.Metadata["targets.json"]) != "{}" || pending[0].Actor != p.Actor {
		t.Fatalf("pending publications are %+v", pending)
	}
	cat := livepatch.Catalogue{Kernel: kernel.Target(), CoveredUntil: "2027-03-19", Patches: []livepatch.Livepatch{patch(1), patch(2)}}
	for range 2 {
		must(t, f.CompletePublication(ctx, p, []livepatch.Catalogue{cat}))
	}
	must(t, f.AbandonPublication(ctx, p.ID))
	if todo, err := f.BeginPublication(ctx, p); err != nil || todo {
		t.Errorf("begin of a complete publication: %v %v, want nothing to do", todo, err)
	}
	id := f.enrol(t, 1)
	req := checkIn("b1")
	req.Loaded = []livepatch.LoadedPatch{{Module: "lp_2", Version: livepatch.Version{Major: 2, Minor: 1}, Enabled: true}}
	req.Reports = []livepatch.Report{{ID: "r", Kind: livepatch.ReportFailed, Version: livepatch.Version{Major: 1, Minor: 1}}}
	out, err := f.CheckIn(ctx, id, req, stay)
	must(t, err)
	if out.Catalogue == nil || len(out.Catalogue.Patches) != 2 || out.Catalogue.CoveredUntil != cat.CoveredUntil {
		t.Errorf("catalogue of the machine's kernel is %+v", out.Catalogue)
	}
	patches, err := f.Patches(ctx, kernel.Release)
	must(t, err)
	if len(patches) != 2 || patches[0].Failed != 1 || patches[1].Machines != 1 || patches[0].Machines != 0 {
		t.Errorf("patches are %+v", patches)
	}
	_, err = f.Patch(ctx, kernel.Target(), livepatch.Version{Major: 9, Minor: 9})
	wantCode(t, err, livepatch.CodeNotFound, "9.9")
}

func TestWithdrawalIsAudited(t *testing.T) {
	t.Parallel()
	f := open(t)
	cat := livepatch.Catalogue{Kernel: kernel.Target(), Patches: []livepatch.Livepatch{patch(1)}}
	publish := func(id string) {
		t.Helper()
		p := store.PendingPublication{ID: id, Actor: "operator ann"}
		_, err := f.BeginPublication(t.Context(), p)
		must(t, err)
		must(t, f.CompletePublication(context.Background(), p, []livepatch.Catalogue{cat}))
	}
	publish("p1")
	cat.Patches[0].Withdrawn = &livepatch.Withdrawal{At: f.clock.now(), Reason: "it panics"}
	publish("p2")
	lines, err := f.Audit(t.Context(), 2)
	must(t, err)
	if l := lines[1]; l.Action != "patch.withdraw" || l.Detail != "it panics" || l.Object != kernel.Release+" amd64 1.1" {
		t.Errorf("withdrawal in the audit log is %+v", l)
	}
}
