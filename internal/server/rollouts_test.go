package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

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

// fake is a machine that talks to the real API.
type fake struct {
	id, plan string
	client   *api.Client
	boot     int
	loaded   *livepatch.LoadedPatch
	reports  []livepatch.Report
	suspects []livepatch.Version
	grants   int
	silent   bool
	hardware string
	virt     string
}

// fleet is a server with many fake machines, under a clock of its own.
type fleet struct {
	*fixture
	t        testing.TB
	clock    *clock
	machines []*fake
	// used is called after a machine has loaded a patch.
	used func(*fake)
	// each is called for each machine in each step.
	each func(step int, m *fake)
	step int
}

// quickly is a policy for tests: the order of things as in the default policy, and
// little time.
func quickly() rollout.Policy {
	stage := func(tier livepatch.Tier, share float64, least int) rollout.Stage {
		return rollout.Stage{Tier: tier, Share: share, Soak: rollout.Duration(30 * time.Minute), LeastHealthy: least}
	}
	p := rollout.DefaultPolicy()
	p.Name, p.Version = "quickly", 1
	p.Stages = []rollout.Stage{stage(livepatch.TierCanary, 40, 10), stage(livepatch.TierEarly, 70, 20), stage(livepatch.TierGeneral, 100, 0)}
	p.Ramp = rollout.Ramp{Start: 3, PerHealthy: 1}
	p.Caution = rollout.Caution{Hold: rollout.Duration(10 * time.Minute), Machines: 2}
	return p
}

// newFleet enrols this many community machines and paid ones.
func newFleet(t testing.TB, community, paid int) *fleet {
	t.Helper()
	c := &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	f := &fleet{t: t, clock: c, used: func(*fake) {}, each: func(int, *fake) {}}
	f.fixture = newServerAt(t, c.now, func(o *Options) {
		o.EnrolPerMinute, o.RolloutPolicy, o.CheckInterval = 1_000_000, "quickly", 5*time.Minute
	})
	_, err := f.operator.SetPolicy(t.Context(), quickly())
	must(t, err)
	for _, g := range []struct {
		plan string
		n    int
	}{{"community", community}, {"standard", paid}} {
		_, err := f.operator.CreateAccount(t.Context(), api.NewAccount{Name: g.plan, Plan: g.plan, Limit: g.n + 1})
		must(t, err)
		tok, err := f.operator.CreateToken(t.Context(), api.NewToken{Account: g.plan})
		must(t, err)
		for range g.n {
			r := enrolment(tok.Secret, 1000+len(f.machines))
			answer, err := f.operator.Enrol(t.Context(), r)
			must(t, err)
			f.machines = append(f.machines, &fake{id: answer.ID, plan: g.plan,
				client: &api.Client{BaseURL: f.http.URL, Credential: r.Credential, HTTP: f.operator.HTTP}})
		}
	}
	return f
}

// checkIn is one check-in of m; a grant is used at once and reported.
func (f *fleet) checkIn(m *fake) api.CheckInResponse {
	f.t.Helper()
	r := checkIn()
	r.BootID, r.Reports, r.Suspects = fmt.Sprint("b", m.boot), m.reports, m.suspects
	r.Hardware, r.Virt = m.hardware, m.virt
	if m.loaded != nil {
		r.Loaded = []livepatch.LoadedPatch{*m.loaded}
	}
	out, err := m.client.CheckIn(f.t.Context(), r)
	must(f.t, err)
	m.reports = nil
	return out
}

func (f *fleet) report(m *fake, kind livepatch.ReportKind, v livepatch.Version, signature string) {
	m.reports = append(m.reports, livepatch.Report{ID: fmt.Sprintf("r%d-%s-%d", f.step, kind, len(m.reports)), Kind: kind, Version: v, Signature: signature, BootID: fmt.Sprint("b", m.boot)})
}

// crash takes m down and up again: it reports, and does not load the patch again.
func (f *fleet) crash(m *fake, signature string) {
	v := livepatch.Version{}
	if m.loaded != nil {
		v = m.loaded.Version
		m.suspects = append(m.suspects, v)
	}
	f.report(m, livepatch.ReportRebooted, v, signature)
	m.boot++
	m.loaded = nil
}

// run lets five minutes pass, in which each machine checks in, n times or until done
// says so.
func (f *fleet) run(n int, done func() bool) {
	f.t.Helper()
	for range n {
		f.step++
		for _, m := range f.machines {
			if m.silent {
				continue
			}
			f.each(f.step, m)
			out := f.checkIn(m)
			if out.Grant == nil {
				continue
			}
			m.grants++
			m.loaded = nil
			if out.Grant.Action == livepatch.ActionApply {
				m.loaded = &livepatch.LoadedPatch{Module: f.module(out.Grant.Version), Version: out.Grant.Version, Enabled: true}
				f.report(m, livepatch.ReportApplied, out.Grant.Version, "")
			}
			f.used(m)
			if !m.silent {
				f.checkIn(m)
			}
			must(f.t, f.JudgeRollouts(f.t.Context())) // as bad news has it done
		}
		must(f.t, f.JudgeRollouts(f.t.Context()))
		if done() {
			return
		}
		f.clock.advance(5 * time.Minute)
	}
}

func (f *fleet) module(v livepatch.Version) string {
	_, cat := f.repo.Catalogue(kernel.Target())
	return cat.Find(v).Module.Name
}

// only is the one rollout there is.
func (f *fleet) only() api.Rollout {
	f.t.Helper()
	all, err := f.operator.Rollouts(f.t.Context(), kernel.Release)
	must(f.t, err)
	if len(all) != 1 {
		f.t.Fatalf("there are %d rollouts, want one", len(all))
	}
	r, err := f.operator.Rollout(f.t.Context(), all[0].ID)
	must(f.t, err)
	return r
}

func (f *fleet) running() (n int) {
	for _, m := range f.machines {
		if m.loaded != nil {
			n++
		}
	}
	return n
}

func (f *fleet) halted() bool { return f.only().State == rollout.Halted }

// states are the states that a rollout went through.
func states(r api.Rollout) string {
	var names []string
	for _, c := range r.Changes {
		names = append(names, string(c.To))
	}
	return strings.Join(slices.Compact(names), " ")
}

func TestGoodPatchReachesEverybody(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 40, 10)
	f.publish(t, kernel, "one")
	paidEarly, most := 0, 0
	f.used = func(m *fake) {
		if m.plan != "community" && f.only().State != rollout.General {
			paidEarly++
		}
	}
	f.run(100, func() bool {
		p := f.only().Progress
		most = max(most, p.Pending-p.Healthy)
		return f.running() == len(f.machines)
	})
	r := f.only()
	if f.running() != len(f.machines) || r.State != rollout.General {
		t.Fatalf("after %v, %d of %d machines run it and the rollout is %s: %+v", f.clock.now().Sub(r.Started), f.running(), len(f.machines), r.State, r.Assessment)
	}
	if got := states(r); got != "canary early general" {
		t.Errorf("it went through %s", got)
	}
	if paidEarly > 0 {
		t.Errorf("%d machines of paid plans got it before general", paidEarly)
	}
	if most > 3 {
		t.Errorf("the judge saw %d more machines pending than healthy, the ramp begins at 3", most)
	}
	for _, m := range f.machines {
		if m.grants != 1 {
			t.Errorf("machine %s got %d grants", m.id, m.grants)
		}
	}
	if len(r.Key) == 0 || r.Commitment != r.Rollout.Commitment() {
		t.Errorf("with everybody drawn the key %x does not match its commitment %s", r.Key, r.Commitment)
	}
	if f.clock.now().Sub(r.Started) < time.Hour {
		t.Errorf("two stages of half an hour's soak were over after %v", f.clock.now().Sub(r.Started))
	}
}

func TestOopsingPatchHaltsInCanary(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 60, 10)
	events := f.listen(f.machines[len(f.machines)-1])
	f.publish(t, kernel, "one")
	wait(t, t.Context(), events, "event of the publication")
	f.used = func(m *fake) { f.crash(m, "rip:tcp_ack+0x1b") }
	f.run(100, f.halted)
	r := f.only()
	if got := states(r); got != "canary halted" {
		t.Fatalf("it went through %s: %+v", got, r.Assessment)
	}
	wait(t, t.Context(), events, "event of the halt")
	last := r.Changes[len(r.Changes)-1]
	if last.Actor != rollout.ActorJudge || last.Assessment == nil || last.Assessment.Evidence < last.Assessment.Threshold {
		t.Errorf("the halt is %+v", last)
	}
	if !slices.ContainsFunc(last.Assessment.Findings, func(x rollout.Finding) bool { return x.Signature == "rip:tcp_ack+0x1b" && len(x.Machines) > 0 }) {
		t.Errorf("the findings do not name the signature and its machines: %+v", last.Assessment.Findings)
	}
	hurt := f.granted()
	f.run(3, func() bool { return false })
	if f.granted() != hurt {
		t.Errorf("%d machines were granted it after the halt", f.granted()-hurt)
	}
	if len(r.Key) != 0 {
		t.Error("a halted rollout shows the key of its draws")
	}
	if hurt > 12 {
		t.Errorf("%d machines were hurt before the halt", hurt)
	}
	t.Logf("halted after %d machines, evidence %.0f", hurt, last.Assessment.Evidence)
	f.wantAudit("rollout.halt", rollout.ActorJudge)
	if !strings.Contains(f.log.String(), "rollout: halt") {
		t.Error("the log does not tell of the halt")
	}
}

// granted counts machines that were ever granted something.
func (f *fleet) granted() (n int) {
	for _, m := range f.machines {
		n += min(m.grants, 1)
	}
	return n
}

// listen holds m's event stream and tells of each event.
func (f *fleet) listen(m *fake) <-chan api.Event {
	f.t.Helper()
	events, connected := make(chan api.Event, 100), make(chan struct{})
	go func() {
		for e, err := range m.client.Events(f.t.Context()) {
			switch {
			case err != nil:
				return
			case e.Kind == api.Connected:
				close(connected)
			default:
				events <- e
			}
		}
	}()
	wait(f.t, f.t.Context(), connected, "connection of the event stream")
	return events
}

func (f *fleet) wantAudit(action, actor string) {
	f.t.Helper()
	lines, err := f.operator.Audit(f.t.Context(), 1000)
	must(f.t, err)
	n := 0
	for _, l := range lines {
		if l.Action == action && strings.HasPrefix(l.Actor, actor) {
			n++
		}
	}
	if n != 1 {
		f.t.Errorf("the audit log has %d lines of %s by %s, want one", n, action, actor)
	}
}

func TestSilentMachinesHalt(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 80, 0)
	f.publish(t, kernel, "one")
	f.used = func(m *fake) { m.silent = true }
	f.run(60, f.halted)
	r := f.only()
	if !f.halted() || len(r.Changes) == 0 {
		t.Fatalf("%d machines fell silent and the rollout is %s: %+v", f.granted(), r.State, r.Assessment)
	}
	a := r.Changes[len(r.Changes)-1].Assessment
	if len(a.Findings) == 0 || a.Findings[0].Kind != rollout.Silence {
		t.Errorf("the findings are %+v", a.Findings)
	}
	if got := states(r); got != "canary halted" {
		t.Errorf("it went through %s", got)
	}
}

func TestBadDayForAllDoesNotHalt(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 60, 0)
	f.publish(t, kernel, "one")
	f.each = func(step int, m *fake) {
		// A fifth of all machines in two hours: those with the patch among them do not
		// count as healthy, so with many more nobody could tell, and it would stand still.
		if n := slices.Index(f.machines, m); n%5 == 0 && step == 2+n/3 {
			f.report(m, livepatch.ReportOopsed, versionOf(m), fmt.Sprint("rip:nic_poll+", n%3))
		}
	}
	f.run(100, func() bool { return f.only().State == rollout.General || f.halted() })
	if r := f.only(); r.State != rollout.General {
		t.Errorf("with everybody crashing alike the rollout is %s: %+v", r.State, r.Assessment)
	}
}

func versionOf(m *fake) livepatch.Version {
	if m.loaded == nil {
		return livepatch.Version{}
	}
	return m.loaded.Version
}

func TestFailuresThatAreNotThePatchsFault(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 40, 0)
	one := f.publish(t, kernel, "one")
	f.used = func(m *fake) {
		m.loaded, m.reports = nil, nil
		m.reports = append(m.reports, livepatch.Report{ID: fmt.Sprint("d", f.step), Kind: livepatch.ReportFailed, Code: livepatch.CodeUnavailable, Version: one.Version})
	}
	f.run(12, func() bool { return false })
	if r := f.only(); r.State != rollout.Canary || r.Assessment.Evidence > 1.01 || r.Assessment.Tries.Failed != 0 {
		t.Errorf("downloads that failed are held against the patch: %s, %+v", r.State, r.Assessment)
	}
}

func TestFreezeIsRespected(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 10, 0)
	p := quickly()
	until := f.clock.now().Add(time.Hour)
	p.Freeze = []rollout.Freeze{{Since: f.clock.now().Add(-time.Hour), Until: until, Reason: "holidays"}}
	_, err := f.operator.SetPolicy(t.Context(), p)
	must(t, err)
	f.publish(t, kernel, "one")
	f.used = func(m *fake) {
		if f.clock.now().Before(until) {
			t.Errorf("machine %s was granted it in the freeze", m.id)
		}
	}
	f.run(13, func() bool { return false })
	if out := f.checkIn(f.machines[0]); f.only().Stage > 1 {
		t.Errorf("the freeze was over just now, and the rollout is at %s: %q", f.only().State, out.Reason)
	}
	f.run(60, func() bool { return f.running() == len(f.machines) })
	if f.running() != len(f.machines) {
		t.Errorf("%d machines run it long after the freeze", f.running())
	}
}

// TestTinyFleetIsNotKeptWaiting has one machine under the default policy.
func TestTinyFleetIsNotKeptWaiting(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, 0)
	f.RolloutPolicy = "default"
	f.publish(t, kernel, "one")
	f.run(3, func() bool { return f.running() == 1 })
	if f.running() != 1 {
		t.Errorf("the only machine waits for others: %+v", f.only())
	}
}

func digest(module string) string {
	sum := sha256.Sum256([]byte(module))
	return hex.EncodeToString(sum[:])
}

func TestOptingIn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, 1)
	ctx := t.Context()
	tier := func(m *fake, choice, want livepatch.Tier) {
		t.Helper()
		got, err := f.operator.SetTier(ctx, m.id, choice)
		must(t, err)
		if out := f.checkIn(m); got.Tier != want || out.Tier != want {
			t.Errorf("a machine of plan %s that asks for %q is in %s and is told %s, want %s", m.plan, choice, got.Tier, out.Tier, want)
		}
	}
	community, paid := f.machines[0], f.machines[1]
	tier(paid, "", livepatch.TierGeneral)
	tier(paid, livepatch.TierCanary, livepatch.TierCanary)
	tier(paid, livepatch.TierGeneral, livepatch.TierGeneral)
	tier(community, livepatch.TierGeneral, livepatch.TierCanary)
	_, err := f.operator.SetTier(ctx, paid.id, "first")
	wantCode(t, err, livepatch.CodeInvalid, "canary")
}

// TestNewsIsJudgedAtOnce has the judge's loop run without a tick: the publication
// and the crash themselves make it look.
func TestNewsIsJudgedAtOnce(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1, 0)
	f.RolloutPolicy = "default"
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- f.judging(ctx, nil) }()
	m := f.machines[0]
	events := f.listen(m)
	f.publish(t, kernel, "one")
	for f.checkIn(m).Grant == nil {
		wait(t, t.Context(), events, "the machine's turn")
	}
	cancel()
	must(t, <-done)
}

// TestWaitingMachineIsWokenWhenAGrantIsFree has two machines and one place.
func TestWaitingMachineIsWokenWhenAGrantIsFree(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 0)
	p := quickly()
	p.Stages = []rollout.Stage{{Tier: livepatch.TierGeneral, Share: 100, Concurrency: rollout.Limit{Machines: 1}}}
	_, err := f.operator.SetPolicy(t.Context(), p)
	must(t, err)
	first, second := f.machines[0], f.machines[1]
	one := f.publish(t, kernel, "one")
	if f.checkIn(first).Grant == nil {
		t.Fatal("the first machine got no grant")
	}
	first.loaded = &livepatch.LoadedPatch{Module: one.Module.Name, Version: one.Version, Enabled: true}
	f.report(first, livepatch.ReportApplied, one.Version, "")
	f.checkIn(first)
	events := f.listen(second)
	if out := f.checkIn(second); out.Grant != nil || !strings.Contains(out.Reason, "have not reported yet: 1") {
		t.Errorf("the second machine is told %+v", out)
	}
	must(t, f.JudgeRollouts(t.Context()))
	f.clock.advance(16 * time.Minute)
	f.checkIn(first)
	must(t, f.JudgeRollouts(t.Context()))
	wait(t, t.Context(), events, "event for the machine that waits")
	if f.checkIn(second).Grant == nil {
		t.Error("the woken machine got no grant")
	}
	if got := f.only().Progress; got.Healthy != 1 || got.Granted != 1 {
		t.Errorf("progress is %+v", got)
	}
}

// TestHeardOf holds machines with and without an event stream to their clocks, and
// none to the time in which the server was away.
func TestHeardOf(t *testing.T) {
	t.Parallel()
	c := &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	f := newServerAt(t, c.now, nil)
	began := c.now()
	c.advance(24 * time.Hour)
	now := c.now()
	sub := f.hub.subscribe("connected", kernel.Target())
	left := f.hub.subscribe("left", kernel.Target())
	f.hub.unsubscribe("left", left)
	for _, tt := range []struct {
		id       string
		seen     time.Time
		at       time.Time
		patience time.Duration
	}{
		{"connected", now.Add(-5 * time.Hour), now, 20 * time.Minute},
		{"left", now.Add(-5 * time.Hour), now, 20 * time.Minute},
		{"polls", now.Add(-time.Minute), now.Add(-time.Minute), 95 * time.Minute},
		{"from before the server began", began.Add(-time.Hour), began.Add(-time.Hour), 155 * time.Minute},
	} {
		got := f.heardOf(store.Member{Machine: rollout.Machine{ID: tt.id}, LastSeen: tt.seen}, now)
		if !got.at.Equal(tt.at) || got.until.Sub(got.at) != tt.patience {
			t.Errorf("%s: heard of at %v, may be silent for %v; want %v and %v", tt.id, got.at, got.until.Sub(got.at), tt.at, tt.patience)
		}
	}
	f.hub.unsubscribe("connected", sub)
}
