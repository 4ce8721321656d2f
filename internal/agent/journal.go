package agent

import (
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// phase is how far an attempt to load a livepatch has come.
type phase string

// The phases, in order. The journal is written and synced before each begins.
const (
	// phaseLoading: finit_module may be running; the module's init code runs.
	phaseLoading phase = "loading"
	// phaseTransition: loaded; tasks are being moved to the patched functions.
	phaseTransition phase = "transition"
	// phaseSoaking: every task runs it; not long enough yet to call it good.
	phaseSoaking phase = "soaking"
	// phaseHealthy: it soaked without trouble.
	phaseHealthy phase = "healthy"
)

// journal is the last attempt to load a livepatch. It is the only thing that a
// crash leaves behind, so it must be on disk before the kernel sees the module.
type journal struct {
	BootID  string                 `json:"boot_id"`
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	Module  string                 `json:"module"`
	// Grant is empty for a load at boot.
	Grant string `json:"grant,omitempty"`
	Phase phase  `json:"phase"`
	// At is when Phase began; Started when the attempt did. This machine's clock.
	At      time.Time `json:"at"`
	Started time.Time `json:"started"`
	// Baseline is the kernel's health before the load.
	Baseline kernel.Baseline `json:"baseline"`
	// Known are the signatures that this boot had before the load: a driver that
	// warns all the time does so on machines without a livepatch too, where it is told
	// once.
	Known []string `json:"known,omitempty"`
	// Tries counts attempts in this boot at which the daemon died while loading.
	Tries int `json:"tries"`
	// Checks is how many health checks were made since the load.
	Checks int `json:"checks"`
	// Found is the gravest that they found, ReportWarned or ReportOopsed.
	Found livepatch.ReportKind `json:"found,omitempty"`
	// Before is the journal of what ran when the attempt began, to go back to when
	// it fails; nil for nothing, and once the attempt has not failed.
	Before *journal `json:"before,omitempty"`
}

// unproven tells that a crash now would be on the patch's account.
func (p phase) unproven() bool {
	return p == phaseLoading || p == phaseTransition || p == phaseSoaking
}

// suspect is a version that the boot guard holds back.
type suspect struct {
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	Module  string                 `json:"module"`
	Reason  string                 `json:"reason"`
	At      time.Time              `json:"at"`
}

// err is why a suspect is not loaded, and what to do.
func (s suspect) err() error {
	return livepatch.Errorf(livepatch.CodeSuspect, "livepatch %s is held back: %s. A newer version will be loaded; to try this one again, run 'livepatch refresh --retry-suspect'", s.Version, s.Reason)
}
