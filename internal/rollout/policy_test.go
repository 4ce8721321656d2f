package rollout_test

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

func TestPolicyReadsBack(t *testing.T) {
	t.Parallel()
	want := rollout.DefaultPolicy()
	want.Freeze = []rollout.Freeze{
		{Days: []string{"sat", "sun"}, From: "00:00", To: "24:00", Reason: "weekend"},
		{Since: noon, Until: noon.Add(48 * time.Hour), Reason: "sale"},
	}
	asYAML, err := want.YAML()
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"YAML": asYAML, "JSON": asJSON} {
		got, err := rollout.ParsePolicy(data)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, data)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s reads back as\n%+v, want\n%+v", name, got, want)
		}
	}
}

func TestPolicyRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*rollout.Policy)
		says   string
	}{
		"no name":            {func(p *rollout.Policy) { p.Name = "" }, "needs a name"},
		"no stages":          {func(p *rollout.Policy) { p.Stages = nil }, "no stages"},
		"share falls":        {func(p *rollout.Policy) { p.Stages[1].Share = 0.5 }, "only grow"},
		"tier falls":         {func(p *rollout.Policy) { p.Stages[2].Tier = "canary"; p.Stages[1].Tier = "early" }, "only grow"},
		"unknown tier":       {func(p *rollout.Policy) { p.Stages[0].Tier = "beta" }, "beta"},
		"never everybody":    {func(p *rollout.Policy) { p.Stages = p.Stages[:6] }, "last stage"},
		"share above 100":    {func(p *rollout.Policy) { p.Stages[0].Share = 101 }, "101"},
		"negative soak":      {func(p *rollout.Policy) { p.Stages[0].Soak = -1 }, "below zero"},
		"share without some": {func(p *rollout.Policy) { p.Stages[0].Concurrency = rollout.Limit{Share: 1} }, "small fleet"},
		"everybody healthy":  {func(p *rollout.Policy) { p.Stages[0].LeastShare = 100 }, "always away"},
		"ramp from 0":        {func(p *rollout.Policy) { p.Ramp = rollout.Ramp{PerHealthy: 1} }, "start at 1"},
		"caution of 0":       {func(p *rollout.Policy) { p.Caution.Machines = 0 }, "caution"},
		"odd day":            {func(p *rollout.Policy) { p.Freeze = []rollout.Freeze{{Days: []string{"saturday"}}} }, "saturday"},
		"odd time":           {func(p *rollout.Policy) { p.Freeze = []rollout.Freeze{{Days: []string{"sat"}, From: "9", To: "10"}} }, "22:00"},
		"empty freeze":       {func(p *rollout.Policy) { p.Freeze = []rollout.Freeze{{}} }, "either dated"},
		"false halts of 1":   {func(p *rollout.Policy) { p.Judge.FalseHalts = 1 }, "false_halts"},
		"tolerance below 1":  {func(p *rollout.Policy) { p.Judge.Tolerance = 0.5 }, "tolerance"},
	} {
		p := rollout.DefaultPolicy()
		tt.change(&p)
		if err := p.Validate(); livepatch.CodeOf(err) != livepatch.CodeInvalid || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want one that says %q", name, err, tt.says)
		}
	}
	for _, text := range []string{
		"name: x\nversion: 1\nstages: [{tier: general, share: 100, shares: 5}]\n",
		"name: x\nversion: 1\nstages: [{tier: general, share: 100, soak: 1 hour}]\n",
		"name: x\nversion: 1\nstages: [{tier: general, share: .nan}]\n",
		"{}\n---\n{}\n", "", "[",
	} {
		if p, err := rollout.ParsePolicy([]byte(text)); err == nil {
			t.Errorf("%q reads as %+v", text, p)
		}
	}
}

func TestFreeze(t *testing.T) {
	t.Parallel()
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	weekend := rollout.Freeze{Days: []string{"fri", "sat", "sun"}, From: "00:00", To: "24:00"}
	night := rollout.Freeze{Days: []string{"fri"}, From: "22:00", To: "06:00"}
	dated := rollout.Freeze{Since: at("2026-12-20 00:00"), Until: at("2027-01-02 00:00")}
	for _, tt := range []struct {
		freeze rollout.Freeze
		now    string
		end    string // empty: not in force
	}{
		{weekend, "2026-11-26 23:59", ""}, // a Thursday
		{weekend, "2026-11-27 00:00", "2026-11-28 00:00"},
		{weekend, "2026-11-29 23:59", "2026-11-30 00:00"},
		{weekend, "2026-11-30 00:00", ""},
		{night, "2026-11-27 21:59", ""},
		{night, "2026-11-27 22:00", "2026-11-28 06:00"},
		{night, "2026-11-28 05:59", "2026-11-28 06:00"},
		{night, "2026-11-28 22:00", ""},
		{dated, "2026-12-19 23:59", ""},
		{dated, "2026-12-20 00:00", "2027-01-02 00:00"},
		{dated, "2027-01-02 00:00", ""},
	} {
		var want time.Time
		if tt.end != "" {
			want = at(tt.end)
		}
		if got := tt.freeze.End(at(tt.now)); !got.Equal(want) {
			t.Errorf("%+v at %s ends %v, want %q", tt.freeze, tt.now, got, tt.end)
		}
	}
}

// FuzzPolicy: what is accepted is written and read back the same.
func FuzzPolicy(f *testing.F) {
	seed, err := rollout.DefaultPolicy().YAML()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := rollout.ParsePolicy(data)
		if err != nil {
			return
		}
		out, err := p.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := rollout.ParsePolicy(out)
		if err != nil {
			t.Fatalf("accepted, written, refused: %v\n%s", err, out)
		}
		a, _ := json.Marshal(p)
		b, _ := json.Marshal(again)
		if string(a) != string(b) {
			t.Fatalf("reads back as\n%s, want\n%s", b, a)
		}
	})
}

func TestDurationText(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 10 * time.Minute: "10m", 20 * time.Hour: "20h", 90 * time.Minute: "1h30m", 90 * time.Second: "1m30s", 10 * time.Second: "10s",
	} {
		var back rollout.Duration
		if err := back.UnmarshalText([]byte(rollout.Duration(d).String())); err != nil || rollout.Duration(d).String() != want || time.Duration(back) != d {
			t.Errorf("%v is written %s and read back %v, %v; want %s", d, rollout.Duration(d), back, err, want)
		}
	}
}

// TestDocumentedPolicy: the policy that docs/rollouts.md explains is the built-in
// one, with freezes added.
func TestDocumentedPolicy(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/rollouts.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(doc), "```yaml\n")
	text, _, ok := strings.Cut(after, "```")
	if !ok {
		t.Fatal("no policy in docs/rollouts.md")
	}
	got, err := rollout.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Freeze) == 0 {
		t.Error("the documented policy shows no freeze")
	}
	got.Freeze = nil
	if want := rollout.DefaultPolicy(); !reflect.DeepEqual(got, want) {
		t.Errorf("docs/rollouts.md shows\n%+v, the built-in policy is\n%+v", got, want)
	}
}
