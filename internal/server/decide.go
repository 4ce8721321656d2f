package server

import (
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// retryAfter is when something is tried again that failed for a reason that
// passes, such as a full disk.
const retryAfter = 15 * time.Minute

// byRollout is the rule: what the rollouts of the machine's kernel give it. Failed
// attempts and crashes of this very machine are taken from its reports.
func byRollout(f store.Facts) store.Decision {
	if f.Catalogue == nil {
		return store.Decision{}
	}
	m := rollout.Machine{ID: f.Machine, Plan: f.Plan, OptIn: f.Tier, Kernel: f.Kernel, Suspects: f.Suspects,
		Busy: slices.ContainsFunc(f.Loaded, func(p livepatch.LoadedPatch) bool { return p.Transition })}
	if p := loadedOurs(f); p != nil {
		m.Running = p.Version
	}
	for _, p := range f.Catalogue.Patches {
		switch {
		case suspected(f, p.Version):
			m.Suspects = append(slices.Clip(m.Suspects), p.Version)
		case failed(f, p.Version):
			m.Tried = append(m.Tried, p.Version)
		}
	}
	return word(rollout.Decide(m, f.Candidates, f.Now))
}

// word is the decision as it is granted.
func word(d rollout.Decision) store.Decision {
	out := store.Decision{Reason: d.Reason}
	switch d.Answer {
	case rollout.Grant:
		out.Action, out.Version, out.Expires, out.Rollout = livepatch.ActionApply, d.Version, d.Expires, d.Rollout
	case rollout.Unload:
		out.Action, out.Expires = livepatch.ActionUnload, d.Expires
	}
	if out.Rollout == rollout.Open(livepatch.KernelTarget{}, d.Version, time.Time{}).ID {
		out.Rollout = "" // nobody keeps it
	}
	return out
}

// loadedOurs is the newest loaded patch that the catalogue knows.
func loadedOurs(f store.Facts) *livepatch.Livepatch {
	var found *livepatch.Livepatch
	for _, l := range f.Loaded {
		p := f.Catalogue.FindModule(l.Module)
		if p != nil && (found == nil || p.Version.Compare(found.Version) > 0) {
			found = p
		}
	}
	return found
}

// suspected tells whether version v crashed this machine. That counts until a person
// there asks for it all the same. What a machine accuses, and what it only reports,
// its boot guard decides.
func suspected(f store.Facts, v livepatch.Version) bool {
	return !f.RetrySuspect && slices.ContainsFunc(f.Attempts, func(a store.Attempt) bool {
		return a.Version == v && (a.Kind == livepatch.ReportRebooted && a.Code == livepatch.CodeSuspect || a.Kind == livepatch.ReportOopsed)
	})
}

// failed tells whether version v is not to be tried on this machine now, because
// it failed. A refusal by the kernel counts until the next boot, because the same
// boot will refuse it again. What passes by itself counts for a while. When a person
// on the machine asks, nothing of it counts.
func failed(f store.Facts, v livepatch.Version) bool {
	return !f.Retry && slices.ContainsFunc(f.Attempts, func(a store.Attempt) bool {
		if a.Version != v || a.Kind != livepatch.ReportFailed && a.Kind != livepatch.ReportStuck {
			return false
		}
		if passes(a.Code) || a.Kind == livepatch.ReportStuck {
			return f.Now.Sub(a.Received) < retryAfter
		}
		return a.BootID == f.BootID
	})
}

// passes tells whether a failure may be over without anybody doing something to
// patch or kernel.
func passes(c livepatch.Code) bool {
	switch c {
	case livepatch.CodeDisk, livepatch.CodeUnavailable, livepatch.CodeTLS, livepatch.CodeClock, livepatch.CodeExpired,
		livepatch.CodeMetadata, livepatch.CodeRollback, livepatch.CodeNotPrivileged, livepatch.CodeStuck,
		livepatch.CodeTampered: // a proxy or a broken download, as a rule
		return true
	}
	return false
}
