package rollout

import (
	"strings"
	"time"

	"livepatch"
)

// Harm is a kind of bad report. Each kind has a test of its own.
type Harm string

// The kinds of harm.
const (
	// Crash: the kernel oopsed or hit a BUG, or the machine rebooted unexpectedly,
	// with or without evidence. Whether an oops reboots is the machine's setting, so
	// both count together.
	Crash Harm = "crash"
	// Warn: the kernel warned, or gained a taint bit.
	Warn Harm = "warn"
	// Silence: never heard of again, without having said goodbye.
	Silence Harm = "silence"
	// Stuck: the transition did not end and was reversed.
	Stuck Harm = "stuck"
	// Failed: refused by the agent or by the kernel.
	Failed Harm = "failed"
)

// HarmOf is the harm that a report of this kind tells of; empty for good news.
func HarmOf(k livepatch.ReportKind) Harm {
	switch k {
	case livepatch.ReportRebooted, livepatch.ReportOopsed:
		return Crash
	case livepatch.ReportWarned:
		return Warn
	case livepatch.ReportStuck:
		return Stuck
	case livepatch.ReportFailed:
		return Failed
	}
	return ""
}

// compared are the kinds that machines without the patch suffer as well, so that
// there is a control group, with their parts of the stake.
func compared() []share {
	return []share{{Crash, 0.75}, {Silence, 0.1}, {Warn, 0.04}}
}

// ownCodePart is the part of the stake that is bet on crashes in the patch's code.
const ownCodePart = 0.05

// attempts are the kinds that only a machine that tries can suffer.
func attempts() []share { return []share{{Stuck, 0.03}, {Failed, 0.03}} }

// share is a kind's part of the stake; those of all kinds add up to 1.
type share struct {
	kind Harm
	part float64
}

// InOwnCode tells whether a crash's kernel log shows the instruction at fault in
// this module: the line "RIP: 0010:f+0x1b/0x40 [module]" on amd64, "pc : ..." on
// arm64, "Krnl PSW : ..." on s390x.
func InOwnCode(log, module string) bool {
	for line := range strings.Lines(log) {
		for _, at := range []string{"RIP: ", "pc : ", "Krnl PSW : "} {
			if _, rest, ok := strings.Cut(line, at); ok && module != "" && strings.Contains(rest, "["+module+"]") {
				return true
			}
		}
	}
	return false
}

// Stratum is what a machine is compared by.
type Stratum struct {
	// Pool separates machines that are drawn together: PoolCommunity (with those
	// that opted in) and PoolPaid. A machine is only ever compared within its pool.
	Pool string `json:"pool"`
	// Kernel is the release, which has the flavour in it.
	Kernel string `json:"kernel"`
	// Hardware and Virt are the system's vendor and model, and the hypervisor;
	// empty when not known.
	Hardware string `json:"hardware,omitempty"`
	Virt     string `json:"virt,omitempty"`
}

// The pools.
const (
	PoolCommunity = "community"
	PoolPaid      = "paid"
)

// StratumOf is m's stratum; hardware and virt may be empty.
func StratumOf(m Machine, hardware, virt string) Stratum {
	s := Stratum{Pool: PoolCommunity, Kernel: m.Kernel.Release, Hardware: hardware, Virt: virt}
	if FirstTier(m.Plan, m.OptIn) == livepatch.TierGeneral {
		s.Pool = PoolPaid
	}
	return s
}

// Slices are the names of the groups that a machine of this stratum is tested in,
// its whole pool first: "", "kernel=6.1.0-47-amd64", "hardware=...",
// "virt=kvm". A patch that only hurts one of them shows there first.
func (s Stratum) Slices() []string {
	out := []string{""}
	add := func(dimension, value string) {
		if value != "" {
			out = append(out, dimension+"="+value)
		}
	}
	add("kernel", s.Kernel)
	add("hardware", s.Hardware)
	add("virt", s.Virt)
	return out
}

// WindowCount is the number of Windows.
const WindowCount = 4

// Windows are the times since the load by which exposed machines are told apart:
// harm by a patch mostly shows at once. The last, 0, is without end.
func Windows() [WindowCount]time.Duration {
	return [WindowCount]time.Duration{15 * time.Minute, time.Hour, 6 * time.Hour, 0}
}

// window is the index of the first of Windows that holds this age.
func window(age time.Duration) int {
	for w, limit := range Windows() {
		if age <= limit {
			return w
		}
	}
	return WindowCount - 1
}

// Risk counts the machines of one slice that could have sent an event at the time
// of the event: those online, the sender included. Machines that are away cannot
// crash, so they would make the control group look better than it is.
type Risk struct {
	Online int `json:"online"`
	// Within counts those of them that had loaded the patch no longer than
	// Windows()[i] before; so no count is below the one before it.
	Within [WindowCount]int `json:"within"`
}

// Event is one bad report from a machine of the fleet, with the patch or without:
// the control group's events are what the patched machines' are held against.
//
// Of each machine and kind only the first event of a rollout may be observed.
// Events of one kind are observed in the order of their At; for Silence that is
// the last contact, not the time at which it was noticed.
type Event struct {
	Kind    Harm      `json:"kind"`
	At      time.Time `json:"at"`
	Machine string    `json:"machine"`
	// Signature names the crash or warning; empty when there is no evidence.
	Signature string `json:"signature,omitempty"`
	// Known tells that machines without the patch had this signature before the
	// rollout began; 30 days back is enough.
	Known   bool    `json:"known,omitempty"`
	Stratum Stratum `json:"stratum"`
	// Patched tells that the machine had loaded the patch, Age how long before At.
	Patched bool     `json:"patched"`
	Age     Duration `json:"age,omitempty"`
	// OwnCode tells that the fault was in the patch's own code; see InOwnCode.
	OwnCode bool `json:"own_code,omitempty"`
	// Risks has one entry for each of Stratum.Slices, in that order, each counted
	// within the machine's pool.
	Risks []Risk `json:"risks"`
}

// Judging sets the test that halts; what is zero is taken from DefaultJudging.
type Judging struct {
	// FalseHalts bounds the chance that a harmless patch is ever halted, over the
	// whole life of its rollout: 0.0001 is one in 10,000.
	FalseHalts float64 `json:"false_halts,omitempty" yaml:"false_halts,omitempty"`
	// Tolerance is the ratio of the patched machines' rate of harm to that of all
	// up to which a patch is still called harmless, 1 to 2. What is above 1 is a
	// margin for differences between the groups that are not the patch's: who is
	// online, and how soon that is noticed.
	Tolerance float64 `json:"tolerance,omitempty" yaml:"tolerance,omitempty"`
	// OwnCode is the share of crashes of patched machines that are in the patch's
	// own code though the patch is harmless, at most. It is an assumption: the
	// control group cannot crash there. Default 0.001.
	OwnCode float64 `json:"own_code,omitempty" yaml:"own_code,omitempty"`
	// TolerateStuck and TolerateFailed are the shares of attempts that may get
	// stuck or fail; nobody is hurt by those, but too many deserve a look.
	TolerateStuck  float64 `json:"tolerate_stuck,omitempty" yaml:"tolerate_stuck,omitempty"`
	TolerateFailed float64 `json:"tolerate_failed,omitempty" yaml:"tolerate_failed,omitempty"`
	// Suspicion is the evidence from which a report that doubles it slows the
	// rollout down; see Assessment.Evidence.
	Suspicion float64 `json:"suspicion,omitempty" yaml:"suspicion,omitempty"`
}

// DefaultJudging is the test that DefaultPolicy uses.
func DefaultJudging() Judging {
	return Judging{FalseHalts: 1e-4, Tolerance: 1.25, OwnCode: 0.001, TolerateStuck: 0.05, TolerateFailed: 0.05, Suspicion: 3}
}

// withDefaults completes zero fields.
func (j Judging) withDefaults() Judging {
	d := DefaultJudging()
	for _, f := range []struct{ have, def *float64 }{
		{&j.FalseHalts, &d.FalseHalts}, {&j.Tolerance, &d.Tolerance}, {&j.Suspicion, &d.Suspicion}, {&j.OwnCode, &d.OwnCode},
		{&j.TolerateStuck, &d.TolerateStuck}, {&j.TolerateFailed, &d.TolerateFailed},
	} {
		if *f.have == 0 {
			*f.have = *f.def
		}
	}
	return j
}

// Validate says what is wrong with the settings.
func (j Judging) Validate() error {
	j = j.withDefaults()
	switch {
	case !(j.FalseHalts > 0 && j.FalseHalts <= 0.1):
		return invalid("false_halts %g is not a chance above 0 and at most 0.1", j.FalseHalts)
	case !(j.Tolerance >= 1 && j.Tolerance <= 2):
		return invalid("tolerance %g is not a ratio from 1 to 2", j.Tolerance)
	case !(j.OwnCode > 0 && j.OwnCode <= 1):
		return invalid("own_code %g is not a share above 0 and at most 1", j.OwnCode)
	case !(j.TolerateStuck > 0 && j.TolerateStuck < 0.5) || !(j.TolerateFailed > 0 && j.TolerateFailed < 0.5):
		return invalid("tolerate_stuck and tolerate_failed are shares above 0 and below 0.5")
	case !(j.Suspicion >= 1):
		return invalid("suspicion %g is below 1, where every rollout begins", j.Suspicion)
	}
	return nil
}
