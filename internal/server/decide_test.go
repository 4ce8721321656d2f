package server

import (
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/store"
)

// TestHeldBackUntilAsked: what failed on a machine is not offered there again for
// nothing, but at once when a person there asks; what crashed it only when they say so.
func TestHeldBackUntilAsked(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	v := livepatch.Version{Major: 1, Minor: 1}
	report := func(kind livepatch.ReportKind, code livepatch.Code, ago time.Duration, boot string) store.Attempt {
		return store.Attempt{Version: v, Kind: kind, Code: code, BootID: boot, Received: now.Add(-ago)}
	}
	const failure = livepatch.ReportFailed
	for _, tt := range []struct {
		name                       string
		attempt                    store.Attempt
		always, asked, askedLouder bool // is it held back?
	}{
		{"full disk a minute ago", report(failure, livepatch.CodeDisk, time.Minute, "now"), true, false, false},
		{"full disk an hour ago", report(failure, livepatch.CodeDisk, time.Hour, "now"), false, false, false},
		{"broken download an hour ago", report(failure, livepatch.CodeTampered, time.Hour, "now"), false, false, false},
		{"refused by the kernel in this boot", report(failure, livepatch.CodeRefused, time.Hour, "now"), true, false, false},
		{"refused by the kernel in an earlier boot", report(failure, livepatch.CodeRefused, time.Hour, "before"), false, false, false},
		{"stuck a minute ago", report(livepatch.ReportStuck, livepatch.CodeStuck, time.Minute, "now"), true, false, false},
		{"crashed the machine a year ago", report(livepatch.ReportRebooted, livepatch.CodeSuspect, 365*24*time.Hour, "before"), true, true, false},
	} {
		held := func(retry, louder bool) bool {
			f := store.Facts{Now: now, BootID: "now", Attempts: []store.Attempt{tt.attempt}, Retry: retry, RetrySuspect: louder}
			return failed(f, v) || suspected(f, v)
		}
		if got := held(false, false); got != tt.always {
			t.Errorf("%s: held back is %v, want %v", tt.name, got, tt.always)
		}
		if got := held(true, false); got != tt.asked {
			t.Errorf("%s, and a person asks: held back is %v, want %v", tt.name, got, tt.asked)
		}
		if got := held(true, true); got != tt.askedLouder {
			t.Errorf("%s, and a person trusts it again: held back is %v, want %v", tt.name, got, tt.askedLouder)
		}
	}
}
