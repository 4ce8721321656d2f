package server

import (
	"fmt"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/store"
)

const (
	// grantLife is how long a machine may act on a grant.
	grantLife = 10 * time.Minute
	// retryAfter is when something is tried again that failed for a reason that
	// passes, such as a full disk.
	retryAfter = 15 * time.Minute
)

// newest is the rule while there are no rollouts: the newest patch made for the
// machine's kernel binary, unless it has hurt or failed there; and away with what
// was withdrawn.
func newest(f store.Facts) store.Decision {
	if f.Catalogue == nil {
		return store.Decision{}
	}
	loaded := loadedOurs(f)
	if slices.ContainsFunc(f.Loaded, func(p livepatch.LoadedPatch) bool { return p.Transition }) {
		return store.Decision{Reason: "a transition is still going on"}
	}
	want := f.Catalogue.Latest(f.Kernel)
	blocked := ""
	if want != nil {
		if loaded != nil && loaded.Version == want.Version {
			return store.Decision{}
		}
		newer := loaded == nil || loaded.Withdrawn != nil || want.Version.Compare(loaded.Version) > 0
		if blocked = heldBack(f, want.Version); newer && blocked == "" {
			return store.Decision{Action: livepatch.ActionApply, Version: want.Version, Expires: f.Now.Add(grantLife),
				Reason: fmt.Sprintf("livepatch %s is the newest for this kernel", want.Version)}
		}
	}
	if loaded != nil && loaded.Withdrawn != nil {
		return store.Decision{Action: livepatch.ActionUnload, Expires: f.Now.Add(grantLife),
			Reason: fmt.Sprintf("livepatch %s was withdrawn: %s", loaded.Version, loaded.Withdrawn.Reason)}
	}
	return store.Decision{Reason: blocked}
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

// heldBack says why this machine is not given version v; empty when nothing holds
// it back. A crash counts for ever. A refusal by the kernel counts until the next
// boot, because the same boot will refuse it again. What passes by itself counts
// for a while.
func heldBack(f store.Facts, v livepatch.Version) string {
	if slices.Contains(f.Suspects, v) {
		return fmt.Sprintf("livepatch %s is suspected of having crashed this machine", v)
	}
	for _, a := range f.Attempts {
		if a.Version != v {
			continue
		}
		switch a.Kind {
		case livepatch.ReportRebooted, livepatch.ReportOopsed:
			return fmt.Sprintf("livepatch %s is suspected of having crashed this machine", v)
		case livepatch.ReportFailed, livepatch.ReportStuck:
			wait := passes(a.Code) || a.Kind == livepatch.ReportStuck
			if wait && f.Now.Sub(a.Received) < retryAfter || !wait && a.BootID == f.BootID {
				return fmt.Sprintf("livepatch %s failed on this machine", v)
			}
		}
	}
	return ""
}

// passes tells whether a failure may be over without anybody doing something to
// patch or kernel.
func passes(c livepatch.Code) bool {
	switch c {
	case livepatch.CodeDisk, livepatch.CodeUnavailable, livepatch.CodeTLS, livepatch.CodeClock, livepatch.CodeExpired,
		livepatch.CodeMetadata, livepatch.CodeRollback, livepatch.CodeNotPrivileged, livepatch.CodeStuck:
		return true
	}
	return false
}
