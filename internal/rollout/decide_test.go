package rollout_test

import (
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

var (
	kernel = livepatch.Kernel{Release: "6.1.0-47-cloud-amd64", Arch: "amd64", BuildID: strings.Repeat("0a", 20)}
	noon   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) // a Monday
)

func version(major uint32) livepatch.Version { return livepatch.Version{Major: major, Minor: 1} }

// candidate is a patch of kernel whose rollout is open to everybody, changed as
// change says.
func candidate(v uint32, change func(*rollout.Rollout)) rollout.Candidate {
	r := rollout.Open(kernel.Target(), version(v), noon)
	if change != nil {
		change(&r)
	}
	return rollout.Candidate{Rollout: &r, BuildIDs: []string{kernel.BuildID}}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	plain := rollout.Machine{ID: "m1", Plan: "community", Kernel: kernel}
	with := func(change func(*rollout.Machine)) rollout.Machine {
		m := plain
		change(&m)
		return m
	}
	state := func(s rollout.State) func(*rollout.Rollout) {
		return func(r *rollout.Rollout) { r.State, r.Reason = s, "nine machines oopsed in tcp_ack." }
	}
	one := candidate(1, nil)
	for name, tt := range map[string]struct {
		machine    rollout.Machine
		candidates []rollout.Candidate
		want       rollout.Answer
		version    uint32
		says       string
	}{
		"no patch":              {plain, nil, rollout.Nothing, 0, ""},
		"general":               {plain, []rollout.Candidate{one}, rollout.Grant, 1, "general"},
		"newest wins":           {plain, []rollout.Candidate{one, candidate(2, nil)}, rollout.Grant, 2, ""},
		"has it":                {with(func(m *rollout.Machine) { m.Running = version(1) }), []rollout.Candidate{one}, rollout.Nothing, 0, ""},
		"has a newer one":       {with(func(m *rollout.Machine) { m.Running = version(2) }), []rollout.Candidate{one}, rollout.Nothing, 0, ""},
		"suspect":               {with(func(m *rollout.Machine) { m.Suspects = []livepatch.Version{version(1)} }), []rollout.Candidate{one}, rollout.Wait, 1, "suspected of a crash"},
		"failed before":         {with(func(m *rollout.Machine) { m.Tried = []livepatch.Version{version(1)} }), []rollout.Candidate{one}, rollout.Wait, 1, "could not be applied"},
		"in transition":         {with(func(m *rollout.Machine) { m.Busy = true }), []rollout.Candidate{one}, rollout.Wait, 1, "transition"},
		"rebuilt kernel":        {with(func(m *rollout.Machine) { m.Kernel.BuildID = strings.Repeat("0b", 20) }), []rollout.Candidate{one}, rollout.Nothing, 0, ""},
		"unknown build id":      {with(func(m *rollout.Machine) { m.Kernel.BuildID = "" }), []rollout.Candidate{one}, rollout.Nothing, 0, ""},
		"other kernel":          {with(func(m *rollout.Machine) { m.Kernel.Release = "6.1.0-48-amd64" }), []rollout.Candidate{one}, rollout.Nothing, 0, ""},
		"staged":                {plain, []rollout.Candidate{candidate(1, state(rollout.Staged))}, rollout.Wait, 1, "has not begun"},
		"halted":                {plain, []rollout.Candidate{candidate(1, state(rollout.Halted))}, rollout.Stopped, 1, "nine machines"},
		"halted keeps running":  {with(func(m *rollout.Machine) { m.Running = version(1) }), []rollout.Candidate{candidate(1, state(rollout.Halted))}, rollout.Nothing, 0, ""},
		"halted, older is good": {plain, []rollout.Candidate{one, candidate(2, state(rollout.Halted))}, rollout.Grant, 1, ""},
		"withdrawn":             {plain, []rollout.Candidate{candidate(1, state(rollout.Withdrawn))}, rollout.Nothing, 0, ""},
		"withdrawn is unloaded": {with(func(m *rollout.Machine) { m.Running = version(1) }), []rollout.Candidate{candidate(1, state(rollout.Withdrawn))}, rollout.Unload, 1, "nine machines"},
		"withdrawn is replaced": {with(func(m *rollout.Machine) { m.Running = version(2) }), []rollout.Candidate{one, candidate(2, state(rollout.Withdrawn))}, rollout.Grant, 1, ""},
		"withdrawn elsewhere":   {with(func(m *rollout.Machine) { m.Running, m.Kernel.Arch = version(1), "arm64" }), []rollout.Candidate{candidate(1, state(rollout.Withdrawn))}, rollout.Nothing, 0, ""},
		"paused":                {plain, []rollout.Candidate{candidate(1, func(r *rollout.Rollout) { r.Paused = true })}, rollout.Wait, 1, "paused"},
	} {
		got := rollout.Decide(tt.machine, tt.candidates, noon)
		want := livepatch.Version{}
		if tt.version > 0 {
			want = version(tt.version)
		}
		if got.Answer != tt.want || got.Version != want || !strings.Contains(got.Reason, tt.says) {
			t.Errorf("%s: got %+v, want %s of %q that says %q", name, got, tt.want, want, tt.says)
		}
		if got.Answer == rollout.Grant && !got.Expires.After(noon) {
			t.Errorf("%s: the grant expires at %v", name, got.Expires)
		}
	}
}

func TestFirstTierAndPool(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		plan  string
		optIn livepatch.Tier
		tier  livepatch.Tier
		pool  string
	}{
		{"community", "", "canary", rollout.PoolCommunity},
		{"community", "general", "canary", rollout.PoolCommunity}, // no opting out without a plan
		{"standard", "", "general", rollout.PoolPaid},
		{"standard", "general", "general", rollout.PoolPaid},
		{"standard", "canary", "canary", rollout.PoolCommunity},
		{"advanced", "early", "early", rollout.PoolCommunity},
		{"advanced", "nonsense", "general", rollout.PoolPaid},
	} {
		m := rollout.Machine{Plan: tt.plan, OptIn: tt.optIn, Kernel: kernel}
		tier, stratum := rollout.FirstTier(tt.plan, tt.optIn), rollout.StratumOf(m, "h1", "kvm")
		if tier != tt.tier || stratum.Pool != tt.pool || stratum.Kernel != kernel.Release {
			t.Errorf("%s that opted in to %q: tier %s, %+v; want %s, %s", tt.plan, tt.optIn, tier, stratum, tt.tier, tt.pool)
		}
	}
}

// BenchmarkDecide is what a check-in pays for its answer, with three patches.
func BenchmarkDecide(b *testing.B) {
	canary := func(r *rollout.Rollout) {
		r.Policy, r.State, r.Key = rollout.DefaultPolicy(), rollout.Canary, make([]byte, rollout.KeySize)
	}
	candidates := []rollout.Candidate{candidate(1, nil), candidate(2, nil), candidate(3, canary)}
	m := rollout.Machine{ID: "m1", Plan: "community", Kernel: kernel, Running: version(2)}
	for b.Loop() {
		rollout.Decide(m, candidates, noon)
	}
}
