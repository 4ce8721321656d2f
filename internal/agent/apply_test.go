package agent

import (
	"slices"
	"testing"

	"livepatch"
)

func TestGrantIsAppliedAndReported(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	s := b.refresh()
	b.wantLoads(moduleName(1))
	b.wantRunning(moduleName(1))
	if got := s.Status[0].Livepatch; got.State != livepatch.StateApplied || got.Version != version(1) || len(got.Fixes) != 1 || got.Fixes[0].Name != "cve-2026-1234" || !got.Fixes[0].Patched {
		t.Errorf("status is %+v", got)
	}
	if len(s.Problems) != 0 || s.ServerCheckIn != "succeeded" {
		t.Errorf("problems %v, check-in %q", s.Problems, s.ServerCheckIn)
	}
	r, ok := b.srv.report(livepatch.ReportApplied)
	if !ok || r.Version != version(1) || r.Grant != "grant-1.1" || r.TransitionMillis < 1 {
		t.Errorf("report is %+v", r)
	}
	if last := b.srv.lastCheck(); last.PatchState != livepatch.StateApplied || len(last.Loaded) != 1 || last.Loaded[0].Version != version(1) {
		t.Errorf("the server was told %+v", last)
	}
}

func TestNewVersionReplacesAndOldModuleIsRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.refresh()
	b.publish(2)
	b.refresh()
	b.wantRunning(moduleName(2))
	if !slices.Contains(b.kern.Calls(), "unload "+moduleName(1)) {
		t.Errorf("the replaced module was not removed: %v", b.kern.Calls())
	}
}
