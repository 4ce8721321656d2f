package agent

import (
	"fmt"

	"livepatch"
	"livepatch/internal/kernel"
)

// verdict is what the boot guard makes of the journal at start.
type verdict string

// The verdicts.
const (
	// verdictClear: the journal holds nothing back.
	verdictClear verdict = "clear"
	// verdictResume: same boot, the patch is in the kernel: go on watching it.
	verdictResume verdict = "resume"
	// verdictAgain: the attempt never reached the kernel; it may be made again.
	verdictAgain verdict = "again"
	// verdictSuspect: the patch may have brought the machine down.
	verdictSuspect verdict = "suspect"
)

// maxTries is how often the daemon may die while it loads one patch in one boot.
// A module whose init code oopses takes the loading process with it, and the
// service manager starts us again: without a bound that would be a loop.
const maxTries = 2

// guardInput is all that the boot guard looks at.
type guardInput struct {
	journal *journal
	bootID  string
	// orderly is the boot id in the marker that an orderly shutdown leaves.
	orderly string
	// crashed tells that the firmware or the kernel kept a crash record (pstore)
	// that is younger than the attempt.
	crashed bool
	// named tells that the trace of such a record goes through the module.
	named bool
	// downs is how many boots in a row, the journal's included, ended without a
	// shutdown while this version was in force.
	downs int
	// present tells that the kernel has the module now.
	present bool
	taint   kernel.Taint
}

// guard decides whether what the journal tells was the patch's fault. A reboot by
// the user during the soak is not: the marker of that boot says so. A panic is. A
// power cut leaves the same traces as a hang, so it counts as one: a machine that
// waits for the next version is safer than one that crashes at each boot.
func guard(in guardInput) (verdict, string) {
	j := in.journal
	switch {
	case j == nil:
		return verdictClear, ""
	case j.BootID == in.bootID:
		return guardSameBoot(in)
	case !j.Phase.unproven():
		return guardProven(in)
	case in.crashed:
		return verdictSuspect, fmt.Sprintf("the kernel crashed while livepatch %s was %s", j.Version, j.Phase)
	case in.orderly == j.BootID:
		return verdictClear, ""
	}
	return verdictSuspect, fmt.Sprintf("the machine went down without a shutdown while livepatch %s was %s", j.Version, j.Phase)
}

// maxDowns is how many boots in a row may end without a shutdown while one version
// is in force. Power fails, and kernels crash without us: once says little. A patch
// that brings the machine down some time after its soak would do so at each boot,
// mostly without leaving a record: twice, and the machine goes on without it.
const maxDowns = 2

// guardProven: an earlier boot, in which the patch had soaked without trouble.
func guardProven(in guardInput) (verdict, string) {
	j := in.journal
	switch {
	case in.named:
		return verdictSuspect, fmt.Sprintf("the kernel crashed in the code of livepatch %s", j.Version)
	case in.orderly != j.BootID && in.downs >= maxDowns:
		return verdictSuspect, fmt.Sprintf("the machine went down %d times in a row without a shutdown while livepatch %s was applied", in.downs, j.Version)
	}
	return verdictClear, ""
}

// downs counts boots in a row that ended without a shutdown.
type downs struct {
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	Boots   int                    `json:"boots"`
	// Last is the id of the boot that was counted last: a daemon that is killed
	// while it starts does not count it twice.
	Last string `json:"last"`
}

// after is the count once the journal's boot has ended.
func (d downs) after(j *journal, orderly bool) downs {
	switch {
	case orderly:
		return downs{}
	case d.Last == j.BootID:
		return d
	case d.Kernel != j.Kernel || d.Version != j.Version:
		d.Boots = 0
	}
	return downs{Kernel: j.Kernel, Version: j.Version, Boots: d.Boots + 1, Last: j.BootID}
}

// guardSameBoot: only the daemon was restarted.
func guardSameBoot(in guardInput) (verdict, string) {
	j := in.journal
	died := in.taint.Gained(j.Baseline.Taint)&kernel.TaintDied != 0
	switch {
	case in.present && j.Phase != phaseLoading:
		return verdictResume, ""
	case j.Phase == phaseLoading && died:
		return verdictSuspect, fmt.Sprintf("the kernel oopsed while livepatch %s was being loaded", j.Version)
	case in.present:
		return verdictResume, ""
	case j.Phase == phaseLoading && j.Tries >= maxTries:
		return verdictSuspect, fmt.Sprintf("livepatchd died %d times while livepatch %s was being loaded", j.Tries, j.Version)
	case j.Phase == phaseLoading:
		return verdictAgain, ""
	}
	// It was loaded once and is not any more: somebody unloaded it.
	return verdictClear, ""
}
