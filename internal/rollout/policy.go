package rollout

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"livepatch"
)

// Policy is how patches are exposed: through which stages, how fast, and on what
// evidence the rollout goes on or halts. It has one form in YAML and JSON; see
// ParsePolicy. Policies are versioned: a changed policy is a new version under the
// same name, and rollouts keep the one they started with.
type Policy struct {
	// Name is what people call it, at most 64 bytes.
	Name string `json:"name" yaml:"name"`
	// Version counts the changes of the policy of this name, from 1.
	Version int `json:"version" yaml:"version"`
	// Stages are passed in order. Tiers and shares never fall; the last stage is
	// general with 100 %.
	Stages []Stage `json:"stages" yaml:"stages"`
	// Watch is how long after its grant a machine counts as pending unless it has
	// failed before: the time in which most harm shows. Health is reported 1, 5
	// and 15 minutes after the load.
	Watch Duration `json:"watch" yaml:"watch"`
	// Ramp bounds pending grants by the health seen so far.
	Ramp Ramp `json:"ramp" yaml:"ramp"`
	// Caution is what a suspicious report that does not yet prove harm does.
	Caution Caution `json:"caution" yaml:"caution"`
	// Judge sets the test that halts; its zero value is DefaultJudging.
	Judge Judging `json:"judge,omitzero" yaml:"judge,omitempty"`
	// Freeze lists times in which nothing new is granted and no stage advances.
	Freeze []Freeze `json:"freeze,omitempty" yaml:"freeze,omitempty"`
}

// Stage is one step of exposure.
type Stage struct {
	Tier livepatch.Tier `json:"tier" yaml:"tier"`
	// Share is the percentage of the machines that this tier may draw from,
	// above 0 to 100. In canary and early those are the machines of community
	// accounts and of others that opted in; in general, all.
	Share float64 `json:"share" yaml:"share"`
	// Soak is how long the stage lasts at least, after its last suspicious report.
	Soak Duration `json:"soak" yaml:"soak"`
	// LeastHealthy is how many machines must have been watched and found healthy,
	// over all stages so far, before the next stage. Half of the machines drawn so
	// far is enough where those are few; harm is the judge's to see.
	LeastHealthy int `json:"least_healthy" yaml:"least_healthy"`
	// LeastShare is the percentage of the machines drawn so far that must be found
	// healthy too, 0 to 80: with it a stage is not over before it was lived.
	LeastShare float64 `json:"least_share,omitempty" yaml:"least_share,omitempty"`
	// Concurrency bounds the grants that are pending at any time.
	Concurrency Limit `json:"concurrency" yaml:"concurrency"`
}

// Limit is the larger of a number of machines and a percentage of the fleet. The
// zero Limit does not bound.
type Limit struct {
	Machines int     `json:"machines" yaml:"machines"`
	Share    float64 `json:"share,omitempty" yaml:"share,omitempty"`
}

// Of is the bound in a fleet of this many machines; -1 for none.
func (l Limit) Of(fleet int) int {
	if l == (Limit{}) {
		return -1
	}
	return max(l.Machines, int(l.Share/100*float64(fleet)))
}

// Ramp bounds pending grants by what is known: Start + PerHealthy x (machines
// found healthy so far). The zero Ramp does not bound. It keeps a large fleet's
// first grants few: until reports come in, nobody knows.
type Ramp struct {
	Start      int     `json:"start" yaml:"start"`
	PerHealthy float64 `json:"per_healthy" yaml:"per_healthy"`
}

// Of is the bound after this many healthy machines; -1 for none.
func (r Ramp) Of(healthy int) int {
	if r == (Ramp{}) {
		return -1
	}
	return r.Start + int(r.PerHealthy*float64(healthy))
}

// Caution is the answer to suspicion: for Hold after a suspicious report, only
// Machines grants may be pending. Few fresh machines make the next bad report, if
// one comes, much stronger evidence.
type Caution struct {
	Hold     Duration `json:"hold" yaml:"hold"`
	Machines int      `json:"machines" yaml:"machines"`
}

// Freeze is a time in which nobody wants a surprise: either dated (Since, Until)
// or weekly (Days, From, To). All times are UTC.
type Freeze struct {
	Since time.Time `json:"since,omitzero" yaml:"since,omitempty"`
	Until time.Time `json:"until,omitzero" yaml:"until,omitempty"`
	// Days are the days of the week on which the window opens: mon to sun.
	Days []string `json:"days,omitempty" yaml:"days,omitempty,flow"`
	// From and To are times of day, "22:00". A window whose To is not after its
	// From ends on the next day; "24:00" is the end of the day.
	From string `json:"from,omitempty" yaml:"from,omitempty"`
	To   string `json:"to,omitempty" yaml:"to,omitempty"`
	// Reason is for people: "weekend".
	Reason string `json:"reason,omitempty" yaml:"reason,omitempty"`
}

// Duration is a time.Duration that is written as "1h30m".
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "duration %q is not of the form 1h30m", b)
	}
	*d = Duration(v)
	return nil
}

// String is "1h30m" where time.Duration says "1h30m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// DefaultPolicy is the policy for patches that nobody is in a hurry for: canary 1
// and 5 %, early 10, 20, 40 and 60 %, general 100 %, in about two days.
func DefaultPolicy() Policy {
	hours := func(n int) Duration { return Duration(time.Duration(n) * time.Hour) }
	stage := func(tier livepatch.Tier, share float64, soak, least, machines int, pending float64) Stage {
		s := Stage{Tier: tier, Share: share, Soak: hours(soak), LeastHealthy: least, Concurrency: Limit{Machines: machines, Share: pending}}
		if tier != livepatch.TierGeneral {
			s.LeastShare = 50
		}
		return s
	}
	return Policy{
		Name: "default", Version: 1,
		Stages: []Stage{
			stage(livepatch.TierCanary, 1, 2, 20, 3, 0.03),
			stage(livepatch.TierCanary, 5, 2, 50, 6, 0.08),
			stage(livepatch.TierEarly, 10, 4, 100, 10, 0.5),
			stage(livepatch.TierEarly, 20, 4, 200, 20, 1),
			stage(livepatch.TierEarly, 40, 4, 300, 20, 2),
			stage(livepatch.TierEarly, 60, 4, 500, 50, 2),
			stage(livepatch.TierGeneral, 100, 0, 0, 50, 5),
		},
		Watch:   Duration(15 * time.Minute),
		Ramp:    Ramp{Start: 3, PerHealthy: 0.1},
		Caution: Caution{Hold: hours(3), Machines: 2},
		Judge:   DefaultJudging(),
	}
}

// Everybody is the policy of a service without rollouts: general, at once,
// without a limit.
func Everybody() Policy {
	return Policy{Name: "everybody", Version: 1, Stages: []Stage{{Tier: livepatch.TierGeneral, Share: 100}}}
}

// ParsePolicy reads one policy in YAML or JSON. Fields nobody knows are refused by
// name, the policy is validated, and the judge's settings are completed.
func ParsePolicy(data []byte) (Policy, error) {
	var p Policy
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&p); err != nil {
		return Policy{}, livepatch.Errorf(livepatch.CodeInvalid, "policy is not readable: %w", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Policy{}, livepatch.Errorf(livepatch.CodeInvalid, "policy file holds more than one document: keep one policy a file")
	}
	if err := p.Validate(); err != nil {
		return Policy{}, err
	}
	p.Judge = p.Judge.withDefaults()
	return p, nil
}

// YAML is the policy as ParsePolicy reads it.
func (p Policy) YAML() ([]byte, error) { return yaml.Marshal(p) }

// tierOrder ranks the tiers, first exposed first; -1 for what is no tier.
func tierOrder(t livepatch.Tier) int {
	return slices.Index([]livepatch.Tier{livepatch.TierCanary, livepatch.TierEarly, livepatch.TierGeneral}, t)
}

// Validate says what is wrong with the policy.
func (p Policy) Validate() error {
	if p.Name == "" || len(p.Name) > 64 || p.Version < 1 {
		return invalid("a policy needs a name of at most 64 bytes and a version of at least 1")
	}
	if len(p.Stages) == 0 {
		return invalid("policy %s has no stages", p.Name)
	}
	for i, s := range p.Stages {
		if err := s.validate(); err != nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "stage %d of policy %s: %w", i+1, p.Name, err)
		}
		if i == 0 {
			continue
		}
		before := p.Stages[i-1]
		if tierOrder(s.Tier) < tierOrder(before.Tier) || s.Share < before.Share {
			return invalid("stage %d of policy %s (%s, %g %%) exposes less than the stage before it (%s, %g %%): a machine once drawn stays drawn, so tiers and shares only grow",
				i+1, p.Name, s.Tier, s.Share, before.Tier, before.Share)
		}
	}
	if last := p.Stages[len(p.Stages)-1]; last.Tier != livepatch.TierGeneral || last.Share != 100 {
		return invalid("policy %s ends at %s with %g %%: the last stage must be general with 100 %%, else some machines stay unpatched for ever", p.Name, last.Tier, last.Share)
	}
	if p.Watch < 0 || p.Caution.Hold < 0 || p.Caution.Machines < 0 || p.Ramp.Start < 0 || p.Ramp.PerHealthy < 0 {
		return invalid("policy %s: watch, ramp and caution are not below zero", p.Name)
	}
	if p.Ramp != (Ramp{}) && p.Ramp.Start < 1 {
		return invalid("policy %s: a ramp that starts at 0 never grants anything; start at 1 or more", p.Name)
	}
	if p.Caution.Hold > 0 && p.Caution.Machines < 1 {
		return invalid("policy %s: caution with 0 machines learns nothing more; allow 1 or more", p.Name)
	}
	for _, f := range p.Freeze {
		if err := f.validate(); err != nil {
			return err
		}
	}
	return p.Judge.Validate()
}

func invalid(format string, args ...any) error {
	return livepatch.Errorf(livepatch.CodeInvalid, format, args...)
}

func (s Stage) validate() error {
	switch {
	case tierOrder(s.Tier) < 0:
		return invalid("tier %q is not canary, early or general", s.Tier)
	case !(s.Share > 0 && s.Share <= 100):
		return invalid("share %g is not above 0 and at most 100 percent", s.Share)
	case s.Soak < 0 || s.LeastHealthy < 0:
		return invalid("soak and least_healthy are not below zero")
	case !(s.LeastShare >= 0 && s.LeastShare <= 80):
		return invalid("least_share %g is not a percentage from 0 to 80: some machines are always away", s.LeastShare)
	case s.Concurrency.Machines < 0 || !(s.Concurrency.Share >= 0 && s.Concurrency.Share <= 100):
		return invalid("concurrency is a number of machines and a percentage from 0 to 100")
	case s.Concurrency.Machines == 0 && s.Concurrency.Share > 0:
		return invalid("concurrency by share alone grants nothing on a small fleet; set machines to 1 or more too")
	}
	return nil
}

// dayNames are the days as time.Weekday counts them.
func dayNames() []string { return []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} }

func (f Freeze) validate() error {
	dated, weekly := !f.Since.IsZero() || !f.Until.IsZero(), len(f.Days) > 0 || f.From != "" || f.To != ""
	switch {
	case dated == weekly:
		return invalid("a freeze is either dated (since, until) or weekly (days, from, to)")
	case dated && !f.Until.After(f.Since):
		return invalid("a freeze ends (until) after it begins (since)")
	case dated:
		return nil
	}
	if len(f.Days) == 0 {
		return invalid("a weekly freeze names its days, for example [sat, sun]")
	}
	for _, d := range f.Days {
		if !slices.Contains(dayNames(), d) {
			return invalid("day %q of a freeze is not one of %s", d, strings.Join(dayNames(), ", "))
		}
	}
	for _, clock := range []string{f.From, f.To} {
		if _, err := timeOfDay(clock); err != nil {
			return err
		}
	}
	return nil
}

// timeOfDay reads "22:00" as the time since midnight.
func timeOfDay(s string) (time.Duration, error) {
	if s == "24:00" {
		return 24 * time.Hour, nil
	}
	t, err := time.Parse("15:04", s)
	if err != nil {
		return 0, invalid("time of day %q is not of the form 22:00", s)
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, nil
}

// End is when the freeze in force at now ends; zero when it is not in force.
func (f Freeze) End(now time.Time) time.Time {
	if len(f.Days) == 0 {
		if !now.Before(f.Since) && now.Before(f.Until) {
			return f.Until
		}
		return time.Time{}
	}
	now = now.UTC()
	from, errFrom := timeOfDay(f.From)
	to, errTo := timeOfDay(f.To)
	if errFrom != nil || errTo != nil {
		return time.Time{}
	}
	if to <= from {
		to += 24 * time.Hour
	}
	midnight := now.Truncate(24 * time.Hour)
	for _, day := range []time.Time{midnight, midnight.Add(-24 * time.Hour)} {
		begin, end := day.Add(from), day.Add(to)
		if slices.Contains(f.Days, dayNames()[day.Weekday()]) && !now.Before(begin) && now.Before(end) {
			return end
		}
	}
	return time.Time{}
}

// FrozenUntil is the latest end of the freezes in force at now, with its reason;
// zero when none is.
func (p Policy) FrozenUntil(now time.Time) (until time.Time, reason string) {
	for _, f := range p.Freeze {
		if end := f.End(now); end.After(until) {
			until, reason = end, f.Reason
		}
	}
	return until, reason
}
