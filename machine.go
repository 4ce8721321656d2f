package livepatch

import "time"

// CheckState is how the last check with the server went; the names are those of
// the Canonical client.
type CheckState string

// The check states.
const (
	CheckNeeded CheckState = "needs-check"
	CheckFailed CheckState = "check-failed"
	Checked     CheckState = "checked"
)

// PatchState is what became of the livepatch on a machine; the names are those of
// the Canonical client.
type PatchState string

// The patch states.
const (
	// StateUnapplied: a patch is wanted but not loaded yet.
	StateUnapplied PatchState = "unapplied"
	// StateApplying: loaded, the transition is not finished.
	StateApplying PatchState = "applying"
	// StateApplied: every task runs the patched functions.
	StateApplied PatchState = "applied"
	// StateAppliedWithBug: applied, and the kernel warned or oopsed afterwards.
	StateAppliedWithBug PatchState = "applied-with-bug"
	// StateApplyFailed: it could not be applied, or it is suspected of a crash.
	StateApplyFailed PatchState = "apply-failed"
	// StateNothingToApply: no livepatch is wanted on this machine.
	StateNothingToApply PatchState = "nothing-to-apply"
	// StateUnknown: not known, for example before the first check.
	StateUnknown PatchState = "unknown"
	// StateKernelUpgradeRequired: only a newer kernel closes what is open.
	StateKernelUpgradeRequired PatchState = "kernel-upgrade-required"
)

// Supported tells whether a kernel is covered; the names are the wire contract of
// /v1/api/kernels/supported.
type Supported string

// The answers.
const (
	SupportedYes       Supported = "supported"
	SupportedUpgrade   Supported = "kernel-upgrade-required"
	SupportedEndOfLife Supported = "kernel-end-of-life"
	SupportedNo        Supported = "unsupported"
	SupportedUnknown   Supported = "unknown"
)

// Tier is a stage of exposure of a rollout.
type Tier string

// The tiers, first exposed first.
const (
	TierCanary  Tier = "canary"
	TierEarly   Tier = "early"
	TierGeneral Tier = "general"
)

// Action is what a grant allows.
type Action string

// The actions.
const (
	// ActionApply: load this version, replacing what runs.
	ActionApply Action = "apply"
	// ActionUnload: disable and remove what of ours the signed catalogue withdraws.
	ActionUnload Action = "unload"
)

// Grant is the server's word that this machine may do one thing now. It chooses;
// whether the chosen patch is genuine the signed stream alone decides.
type Grant struct {
	// ID identifies the grant in reports; random hex.
	ID      string  `json:"id"`
	Action  Action  `json:"action"`
	Version Version `json:"version,omitzero"`
	// Expires is the server's time after which nothing may be loaded on this
	// grant. Minutes ahead.
	Expires time.Time `json:"expires"`
	// Reason is a sentence for people: why now, or why unload.
	Reason string `json:"reason,omitempty"`
}

// ReportKind is what a report says.
type ReportKind string

// The kinds of report.
const (
	// ReportApplied: loaded and the transition finished.
	ReportApplied ReportKind = "applied"
	// ReportFailed: refused by us or by the kernel; nothing of it runs.
	ReportFailed ReportKind = "failed"
	// ReportStuck: the transition did not finish in time and was reversed.
	ReportStuck ReportKind = "stuck"
	// ReportWarned: the kernel warned after the load, or without any patch.
	ReportWarned ReportKind = "warned"
	// ReportOopsed: the kernel oopsed or hit a BUG after the load, or without any
	// patch.
	ReportOopsed ReportKind = "oopsed"
	// ReportRebooted: the machine rebooted in no orderly way. With CodeSuspect the
	// patch was being loaded or soaked and is not loaded again.
	ReportRebooted ReportKind = "rebooted"
	// ReportUnloaded: disabled and removed.
	ReportUnloaded ReportKind = "unloaded"
	// ReportHealthy: a health check after the load found nothing.
	ReportHealthy ReportKind = "healthy"
)

// Report is what a machine says of one attempt with one livepatch, or that its
// kernel crashed or warned: machines without a livepatch say that too, so that those
// with one can be compared with them.
type Report struct {
	// ID makes a report idempotent: random hex, made once by the machine.
	ID   string     `json:"id"`
	Kind ReportKind `json:"kind"`
	// Version is that of the livepatch that it is about; zero when none was loaded.
	Version Version `json:"version"`
	// Module is the name of the module it is about; empty when there was none.
	Module string `json:"module"`
	// Kernel is the one that ran in the boot that it is about, where that is not
	// the one that the machine runs now; else zero.
	Kernel KernelTarget `json:"kernel,omitzero"`
	// Grant is the grant the attempt was made under; empty for one made at boot.
	Grant string `json:"grant,omitempty"`
	// Code is the error code of a failure.
	Code Code `json:"code,omitempty"`
	// Detail is a sentence for people.
	Detail string `json:"detail,omitempty"`
	// Evidence is kernel log, pstore content or task stacks, at most
	// MaxEvidence bytes.
	Evidence string `json:"evidence,omitempty"`
	// Signature names the crash or warning, for example "rip:tcp_ack+0x1b";
	// equal on machines that suffer the same.
	Signature string `json:"signature,omitempty"`
	// BootID is the boot during which it happened.
	BootID string    `json:"boot_id"`
	At     time.Time `json:"at"`
	// TransitionMillis is how long the transition took; 0 when it did not end.
	TransitionMillis int64 `json:"transition_ms,omitempty"`
	// Vitals are memory and load when the load ended or the health was looked at;
	// nil in other reports.
	Vitals *Vitals `json:"vitals,omitempty"`
}

// Vitals are a machine's memory and load. Zero is "not known".
type Vitals struct {
	// MemTotal, MemAvailable and KernelMemory (what the kernel cannot give back)
	// are in bytes.
	MemTotal     int64 `json:"mem_total,omitempty"`
	MemAvailable int64 `json:"mem_available,omitempty"`
	KernelMemory int64 `json:"kernel_memory,omitempty"`
	// Load1 is the load average of the last minute.
	Load1 float64 `json:"load1,omitempty"`
}

// MaxEvidence bounds Report.Evidence, in bytes.
const MaxEvidence = 16 << 10

// LoadedPatch is a livepatch as /sys/kernel/livepatch shows it.
type LoadedPatch struct {
	Module string `json:"module"`
	// Version is what the catalogue calls it; zero when it is not ours.
	Version    Version `json:"version,omitzero"`
	Enabled    bool    `json:"enabled"`
	Transition bool    `json:"transition"`
}
