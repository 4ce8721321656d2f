package rollout_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"livepatch/internal/rollout"
)

var where = rollout.Stratum{Pool: "community", Kernel: "6.1.0-47-amd64", Hardware: "h1", Virt: "kvm"}

// fresh is a pool of 5000 with ten machines that just loaded the patch.
func fresh() []rollout.Risk {
	r := rollout.Risk{Online: 5000, Within: [rollout.WindowCount]int{10, 30, 50, 50}}
	return []rollout.Risk{r, r, r, r}
}

// crash is a crash of a machine that loaded the patch five minutes before.
func crash(machine, signature string) rollout.Event {
	return rollout.Event{Kind: rollout.Crash, At: noon, Machine: machine, Signature: signature, Stratum: where,
		Patched: true, Age: rollout.Duration(5 * time.Minute), Risks: fresh()}
}

// other is e on a machine without the patch.
func other(e rollout.Event) rollout.Event {
	e.Patched, e.Age = false, 0
	return e
}

func known(e rollout.Event) rollout.Event {
	e.Known = true
	return e
}

func judged(events ...rollout.Event) *rollout.Judge {
	j := rollout.NewJudge(rollout.Judging{})
	for _, e := range events {
		j.Observe(e)
	}
	return j
}

func repeat(n int, e rollout.Event) []rollout.Event {
	var out []rollout.Event
	for i := range n {
		e.Machine = fmt.Sprintf("m%d", i)
		out = append(out, e)
	}
	return out
}

func verdict(j *rollout.Judge) rollout.Assessment {
	r := rollout.Open(kernel.Target(), version(1), noon)
	return j.Assess(&r, rollout.Progress{Healthy: 100}, noon)
}

func TestJudge(t *testing.T) {
	t.Parallel()
	silent := rollout.Event{Kind: rollout.Silence, At: noon, Stratum: where, Patched: true, Age: rollout.Duration(time.Minute), Risks: fresh()}
	tries := func(n rollout.Tries) *rollout.Judge {
		j := judged()
		j.ObserveTries(n)
		return j
	}
	for name, tt := range map[string]struct {
		judge *rollout.Judge
		want  rollout.Verdict
		says  string
	}{
		"nothing":                       {judged(), rollout.Healthy, "100 machines"},
		"one crash":                     {judged(crash("m1", "rip:f+1")), rollout.Healthy, ""},
		"the same new crash twice":      {judged(crash("m1", "rip:f+1"), crash("m2", "rip:f+1")), rollout.Harmful, "2 of 2 reports of crash"},
		"a known crash twice":           {judged(known(crash("m1", "rip:f+1")), known(crash("m2", "rip:f+1"))), rollout.Healthy, ""},
		"a crash others have too":       {judged(other(crash("m0", "rip:f+1")), crash("m1", "rip:f+1"), crash("m2", "rip:f+1")), rollout.Healthy, ""},
		"crashes without evidence":      {judged(repeat(5, crash("", ""))...), rollout.Harmful, "5 of 5 reports"},
		"known crashes, far too many":   {judged(repeat(12, known(crash("", "rip:f+1")))...), rollout.Harmful, "12 of 12 reports"},
		"silence":                       {judged(repeat(6, silent)...), rollout.Harmful, "silence"},
		"silence of machines unpatched": {judged(repeat(500, other(silent))...), rollout.Healthy, ""},
		"crashes of machines unpatched": {judged(repeat(500, other(crash("", "rip:f+1")))...), rollout.Healthy, ""},
		"3 of 100 attempts fail":        {tries(rollout.Tries{Applied: 97, Failed: 3}), rollout.Healthy, ""},
		"30 of 100 attempts fail":       {tries(rollout.Tries{Applied: 70, Failed: 30}), rollout.Harmful, "30 of 100 attempts"},
		"30 of 100 attempts are stuck":  {tries(rollout.Tries{Applied: 70, Stuck: 30}), rollout.Harmful, "stuck"},
	} {
		got := verdict(tt.judge)
		if got.Verdict != tt.want || !strings.Contains(got.Summary, tt.says) {
			t.Errorf("%s: %s (%s) at evidence %.3g, want %s that says %q", name, got.Verdict, got.Summary, got.Evidence, tt.want, tt.says)
		}
	}
}

// TestOwnCode: on a fleet too small for comparisons, two crashes in the patch's
// own code are enough, and one makes the rollout careful.
func TestOwnCode(t *testing.T) {
	t.Parallel()
	few := func(machine string, own bool) rollout.Event {
		e := crash(machine, "rip:tcp_ack+0x1b")
		e.OwnCode = own
		for i := range e.Risks {
			e.Risks[i] = rollout.Risk{Online: 8, Within: [rollout.WindowCount]int{2, 2, 2, 2}}
		}
		return e
	}
	if a := verdict(judged(few("m1", false), few("m2", false))); a.Verdict == rollout.Harmful {
		t.Errorf("2 of 8 machines may crash by chance: %s", a.Summary)
	}
	one := judged(few("m1", true))
	if a := verdict(one); a.Verdict == rollout.Harmful || one.Suspected.IsZero() {
		t.Errorf("one crash: %s, suspected %v", a.Summary, one.Suspected)
	}
	lax := rollout.NewJudge(rollout.Judging{FalseHalts: 0.01})
	lax.Observe(few("m1", true))
	if a := verdict(lax); a.Verdict != rollout.Harmful {
		t.Errorf("one crash, with a promise of 1 %%: %s at %g", a.Summary, a.Evidence)
	}
	if a := verdict(judged(few("m1", true), few("m2", true))); a.Verdict != rollout.Harmful || !strings.Contains(a.Summary, "own code") {
		t.Errorf("two crashes: %s at %g", a.Summary, a.Evidence)
	}
}

func TestInOwnCode(t *testing.T) {
	t.Parallel()
	for log, want := range map[string]bool{
		"[ 9.1] RIP: 0010:tcp_ack+0x1b/0x40 [lp_1]\n":                      true,
		"[ 9.1] RIP: 0010:tcp_ack+0x1b/0x40\n[ 9.2]  f+0x1/0x2 [lp_1]\n":   false,
		"[ 9.1] RIP: 0010:tcp_ack+0x1b/0x40 [lp_11]\n":                     false,
		"[ 9.1] pc : tcp_ack+0x1b/0x40 [lp_1]\n":                           true,
		"Krnl PSW : 0704c00180000000 000003ff8 (tcp_ack+0x1b/0x40 [lp_1])": true,
		"": false,
	} {
		if got := rollout.InOwnCode(log, "lp_1"); got != want {
			t.Errorf("%q: %v", log, got)
		}
	}
	if rollout.InOwnCode("RIP: 0010:f+0x1/0x2 []", "") {
		t.Error("no module has crashed")
	}
}

// TestFindingsNameThem: whoever is told of a halt learns which machines and which
// crash.
func TestFindingsNameThem(t *testing.T) {
	t.Parallel()
	a := verdict(judged(crash("m17", "rip:tcp_ack+0x1b"), other(crash("m3", "rip:old+1")), crash("m18", "rip:tcp_ack+0x1b")))
	out, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"m17", "m18", "rip:tcp_ack+0x1b", "within 15m", `"threshold":10000`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%s does not name %s", out, want)
		}
	}
}

// TestSliceShowsItself: crashes of one kind of hardware are found in its own test,
// though elsewhere as many machines crash without the patch.
func TestSliceShowsItself(t *testing.T) {
	t.Parallel()
	j := judged()
	for i := range 40 {
		e := crash(fmt.Sprint("a", i), "")
		e.Stratum.Hardware = "h8"
		e.Risks[0].Within = [rollout.WindowCount]int{1000, 1000, 1000, 1000} // no wonder in the whole pool
		e.Risks[2] = rollout.Risk{Online: 100, Within: [rollout.WindowCount]int{5, 5, 5, 5}}
		e.Risks[1], e.Risks[3] = e.Risks[0], e.Risks[0]
		j.Observe(e)
		for k := range 4 {
			j.Observe(other(crash(fmt.Sprint("b", i, k), "")))
		}
	}
	a := verdict(j)
	if a.Verdict != rollout.Harmful || len(a.Findings) == 0 || a.Findings[0].Slice != "hardware=h8" {
		t.Errorf("got %s, %+v, want harmful on hardware=h8 first", a.Verdict, a.Findings)
	}
}

// TestJudgeKeepsItsMind: a judge that was stored after each event judges the same.
func TestJudgeKeepsItsMind(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	a, b := judged(), judged()
	for range 300 {
		e := randomEvent(rng, 1)
		a.Observe(e)
		b.Observe(e)
		data, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		b = &rollout.Judge{}
		if err := json.Unmarshal(data, b); err != nil {
			t.Fatal(err)
		}
	}
	if x, y := a.Evidence(), b.Evidence(); math.Abs(x-y) > 1e-9*x {
		t.Errorf("evidence is %g in memory and %g through JSON", x, y)
	}
}

// randomEvent is an event under the null: whoever is at risk is as likely as
// anybody to be the sender, but machines with the patch ratio times as likely.
func randomEvent(rng *rand.Rand, ratio float64) rollout.Event {
	e := rollout.Event{Kind: []rollout.Harm{rollout.Crash, rollout.Silence, rollout.Warn}[rng.IntN(3)], At: noon, Stratum: where}
	e.Stratum.Hardware = fmt.Sprintf("h%d", 1+rng.IntN(5))
	online := 50 + rng.IntN(2000)
	r := rollout.Risk{Online: online}
	for w, n := 0, 0; w < rollout.WindowCount; w++ {
		n += rng.IntN(1 + online/(5+w))
		r.Within[w] = min(n, online)
	}
	e.Risks = []rollout.Risk{r, r, r, r}
	if pick := rng.Float64() * (float64(online) + (ratio-1)*float64(r.Within[3])); pick < ratio*float64(r.Within[3]) {
		ages := []time.Duration{time.Minute, 30 * time.Minute, 2 * time.Hour, 9 * time.Hour}
		for w, n := range r.Within {
			if pick < ratio*float64(n) {
				e.Patched, e.Age = true, rollout.Duration(ages[w])
				break
			}
		}
	}
	e.OwnCode = rng.Float64() < 0.001
	switch rng.IntN(4) {
	case 0:
		e.Signature = fmt.Sprintf("rip:new_%d", rng.IntN(1000))
	case 1:
		e.Signature = fmt.Sprintf("rip:old_%d", rng.IntN(10))
		e.Known = true
	case 2:
		e.Signature = fmt.Sprintf("rip:often_%d", rng.IntN(3))
	}
	return e
}

// TestFalseHalts: of harmless patches at most the promised share is ever halted,
// however long one looks. At a promise of 5 % that can be counted: 1500 rollouts
// of 150 bad reports each, looked at after each. A patch that is at the tolerated
// ratio is the worst harmless one.
func TestFalseHalts(t *testing.T) {
	t.Parallel()
	const promise, rollouts, reports = 0.05, 1500, 150
	for name, settings := range map[string]struct{ ratio, tolerance float64 }{
		"no effect, no tolerance": {1, 1},
		"at the tolerance":        {1.25, 1.25},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(3, 4))
			halted := 0
			for range rollouts {
				j := rollout.NewJudge(rollout.Judging{FalseHalts: promise, Tolerance: settings.tolerance})
				for range reports {
					j.Observe(randomEvent(rng, settings.ratio))
					if j.Evidence() >= 1/promise {
						halted++
						break
					}
				}
			}
			t.Logf("%d of %d harmless rollouts were halted", halted, rollouts)
			// Three standard deviations above the promise.
			if most := promise*rollouts + 3*math.Sqrt(promise*(1-promise)*rollouts); float64(halted) > most {
				t.Errorf("%d of %d harmless rollouts were halted, want at most %.0f", halted, rollouts, most)
			}
			if halted == 0 {
				t.Error("no harmless rollout was halted at all: this test would not see a wrong promise")
			}
		})
	}
}
