package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// instant is simulated time in nanoseconds since epoch.
type instant int64

// never happens.
const eternity = instant(math.MaxInt64)

// epoch is when every simulated rollout starts: Monday 2026-01-05 08:00 UTC.
func epoch() time.Time { return time.Unix(1767600000, 0).UTC() }

func (t instant) time() time.Time { return epoch().Add(time.Duration(t)) }

func minutes(f float64) instant { return instant(f * float64(time.Minute)) }

func hours(f float64) instant { return instant(f * float64(time.Hour)) }

// Facts of the simulated fleet that no flag changes.
const (
	// optedIn is the share of paid machines whose owner opted in to canary.
	optedIn = 0.02
	// refused is the share of attempts that the kernel refuses; harmless.
	refused = 0.003
	// A machine that vanished comes back after 4 hours in the mean, one that was
	// shut down after 6, one that died silently after 12, when somebody came.
	vanishHours, leaveHours, deadHours = 4, 6, 12
	// A rebooting machine reports after 2 to 8 minutes.
	rebootLeast, rebootMost = 2, 8
	// noticeAfter is how long a machine must have said nothing before it counts as
	// silent, in minutes.
	noticeAfter = 20
	// knownSignatures are the background's; each background crash has one of them,
	// the first ones most often, or by chance none or one never seen before.
	knownSignatures = 200
	// fullShare of the fleet must have been given the patch for it to be everywhere;
	// the rest is switched off for days.
	fullShare = 0.99
	// horizon ends a run.
	horizonDays = 21
)

// machine is the state of one machine in a run.
type machine struct {
	loaded  instant // when it loaded the patch; -1 while it has not
	order   int32   // the how manieth load it was; -1
	cell    int16
	optIn   bool
	online  bool
	pending bool
	got     bool  // was granted
	unheard bool  // was away when its watch ended
	quiet   bool  // was counted as silent by the rule
	windows uint8 // the windows it is counted in, as bits
	seen    uint8 // the kinds of harm observed of it, as bits
}

// fleet is what all rules' runs of the same seed share.
type fleet struct {
	machines []machine
	draws    []float64
	key      []byte
	seed     uint64
}

// names are the machines' ids.
func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("m%07d", i)
	}
	return out
}

const rolloutID = "simulated"

// build makes the fleet of run number run.
func (f *fleet) build(c *Config, cells []cell, ids []string, run uint64) {
	rng := rand.New(rand.NewPCG(c.Seed, run))
	f.seed = rng.Uint64()
	f.key = make([]byte, rollout.KeySize)
	for i := range f.key {
		f.key[i] = byte(rng.Uint32())
	}
	away := c.Leave*leaveHours + c.Vanish*vanishHours
	f.machines = f.machines[:0]
	f.draws = f.draws[:0]
	drawer := rollout.NewDrawer(f.key, rolloutID)
	for i := range c.Machines {
		u := rng.Float64()
		m := machine{loaded: -1, order: -1, online: rng.Float64() < 1/(1+away)}
		if u >= communityShare && rng.Float64() < optedIn {
			m.optIn = true
			u = rng.Float64() * communityShare // compared with those it is drawn with
		}
		m.cell = int16(sort.Search(len(cells)-1, func(i int) bool { return u < cells[i].upTo }))
		f.machines = append(f.machines, m)
		f.draws = append(f.draws, drawer.Draw(ids[i]))
	}
}

// fate is what the patch does to a machine that loads it; the same under every
// rule.
type fate struct {
	dies      bool
	delay     instant
	silent    bool
	signature int32
}

// fate of machine m, from its own random numbers.
func (f *fleet) fate(c *Config, m int32) fate {
	rng := rand.New(rand.NewPCG(f.seed, uint64(m)+1))
	out := fate{dies: rng.Float64() < c.Lethal, silent: rng.Float64() < c.Silent}
	// Weibull of shape 1/2: scale x (-ln u)^2, whose median is scale x (ln 2)^2.
	scale := float64(c.Delay) / (math.Ln2 * math.Ln2)
	out.delay = instant(scale * math.Pow(-math.Log(1-rng.Float64()), 2))
	switch u := rng.Float64(); {
	case u < 0.75:
		out.signature = signatureMain
	case u < 0.85:
		out.signature = signatureOther
	case u < 0.90:
		out.signature = signatureNew
	}
	return out
}

// Signatures are numbers until they are reported: 0 is none, 1 to knownSignatures
// the background's.
const (
	signatureMain  int32 = knownSignatures + 1 + iota // the patch's own
	signatureOther                                    // where its corruption shows else
	signatureNew                                      // of one machine only
)

// background is the signature of a crash that has nothing to do with the patch.
func background(rng *rand.Rand) int32 {
	switch u := rng.Float64(); {
	case u < 0.10:
		return 0
	case u < 0.15:
		return signatureNew
	}
	// The k-th is about 1/k as frequent as the first.
	return int32(math.Exp(rng.Float64() * math.Log(knownSignatures+0.999)))
}

// signature is the reported form; unique makes new ones differ.
func signature(s int32, unique int) string {
	switch {
	case s == 0:
		return ""
	case s == signatureMain:
		return "rip:patched_function+0x4c"
	case s == signatureOther:
		return "rip:kmem_cache_alloc+0x98"
	case s == signatureNew:
		return fmt.Sprintf("rip:rare_%d", unique)
	}
	return fmt.Sprintf("rip:known_%d", s)
}

// newRollout is a rollout of the simulated patch that was just started.
func newRollout(c *Config, key []byte) (rollout.Rollout, error) {
	r, err := rollout.New(rolloutID, simKernel().Target(), livepatch.Version{Major: 1, Minor: 1}, c.Policy, key)
	if err != nil {
		return r, err
	}
	r, _, err = rollout.Operate(r, "start", "simulator", "", epoch())
	return r, err
}

// simKernel is what every simulated machine says it runs: one rollout is one
// kernel's. The fleet's kernels are what machines are compared by.
func simKernel() livepatch.Kernel {
	return livepatch.Kernel{Release: "6.1.0-47-amd64", Arch: "amd64", BuildID: "0a0a0a0a0a0a0a0a"}
}
