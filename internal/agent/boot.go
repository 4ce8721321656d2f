package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// Start does what needs no network: hold the journal against what happened since,
// and load what ran before the reboot. It returns an error only when the agent
// cannot work at all; everything else is a problem in the status.
func (a *Agent) Start(ctx context.Context) error {
	if err := a.lock(ctx); err != nil {
		return err
	}
	defer a.unlock()
	if err := a.inspect(); err != nil {
		return err
	}
	a.note(areaMachine, kernel.Refusal(a.facts))
	// A reboot removed them.
	maps.DeleteFunc(a.memory.Modules, func(name string, _ livepatch.Version) bool { return !a.o.Kernel.HasModule(name) })
	v, why, crashes := a.guard()
	a.newBoot(ctx, v == verdictSuspect)
	resume := a.judge(ctx, v, why, crashes)
	if a.enabled() {
		a.openCache()
	}
	// What a load of this boot did is reported by the guard or will be by the checks.
	a.look(!resume && v != verdictSuspect)
	a.sweep(ctx)
	if resume && !a.onItsWayOut() {
		// The outcome is noted and reported.
		_ = a.finish(ctx)
	} else if a.enabled() && !resume {
		a.atBoot(ctx)
	}
	if a.enabled() {
		a.obeyWithdrawal(ctx) // one may have been kept that was not obeyed yet
	}
	a.noteSuspects()
	return ctx.Err()
}

// guard runs the boot guard. The crash records are those since the attempt that the
// journal tells of.
func (a *Agent) guard() (v verdict, why string, crashes []kernel.CrashRecord) {
	j := a.journal
	if j == nil {
		return verdictClear, "", nil
	}
	in := guardInput{journal: j, bootID: a.facts.BootID, taint: a.facts.Taint, present: a.present(j.Module), orderly: a.orderlyBoot()}
	if j.BootID != a.facts.BootID {
		crashes = a.o.Kernel.CrashRecords(j.Started)
		in.crashed = len(crashes) > 0
		in.named = slices.ContainsFunc(crashes, func(r kernel.CrashRecord) bool { return kernel.TraceNames(r.Text, j.Module) })
		a.memory.Downs = a.memory.Downs.after(j, in.orderly == j.BootID)
		in.downs = a.memory.Downs.Boots
	}
	v, why = guard(in)
	a.o.Log.Info("boot guard", "verdict", string(v), "version", j.Version, "phase", string(j.Phase), "same_boot", j.BootID == a.facts.BootID)
	return v, why, crashes
}

// judge settles what the boot guard found. It returns true when a transition of
// this boot is to be watched on.
func (a *Agent) judge(ctx context.Context, v verdict, why string, crashes []kernel.CrashRecord) (resume bool) {
	j := a.journal
	if j == nil {
		return false
	}
	switch {
	case v == verdictSuspect:
		a.accuse(ctx, why, crashes)
	case v == verdictResume && j.Phase == phaseLoading, v == verdictResume && j.Phase == phaseTransition:
		return true
	case v == verdictClear && (j.BootID != a.facts.BootID || j.Phase.unproven()):
		// It is settled: of a boot that ended well, or unloaded by somebody. Left
		// over, it would accuse the patch after another boot. How the boot ended is
		// on disk first.
		if a.saveMemory() != nil {
			return false // noted; the next start judges again
		}
		if err := a.saveJournal(nil); err != nil {
			a.note(areaDisk, err)
		}
	}
	return false
}

// present tells whether the kernel has the livepatch in force or in transition,
// in either direction.
func (a *Agent) present(module string) bool {
	p, err := a.o.Kernel.Patch(module)
	return err == nil && (p.Enabled || p.Transition)
}

// accuse makes the journalled patch a suspect. Suspicion and report are on disk
// before the journal is taken back, and the report's id follows from the attempt:
// a crash in between repeats both and doubles neither.
func (a *Agent) accuse(ctx context.Context, why string, crashes []kernel.CrashRecord) {
	j := a.journal
	a.memory.Downs = downs{} // it is held back, and counted anew when tried again
	a.memory.suspect(suspect{Kernel: j.Kernel, Version: j.Version, Module: j.Module, Reason: why, At: time.Now().UTC()})
	r := livepatch.Report{
		ID: attemptID(j), Kind: livepatch.ReportRebooted, Version: j.Version, Module: j.Module, Grant: j.Grant,
		Code: livepatch.CodeSuspect, Detail: why, BootID: j.BootID,
	}
	if j.BootID == a.facts.BootID {
		r.Kind = livepatch.ReportOopsed
		if e, err := a.o.Kernel.EvidenceSince(j.Baseline); err == nil {
			r.Evidence, r.Signature = clip(e.Text), e.Signature
		}
	} else {
		r.Signature, r.Evidence = a.lastWords(ctx, crashes)
	}
	if j.Kernel != a.facts.Kernel.Target() {
		r.Kernel = j.Kernel
	}
	a.report(r)
	if err := a.saveMemory(); err != nil {
		return // the journal stays and accuses again at the next start
	}
	a.o.Crash("guard:accused")
	var runs *journal
	if j.BootID == a.facts.BootID {
		runs = j.Before
	}
	if err := a.saveJournal(runs); err != nil {
		a.note(areaDisk, err)
	}
}

// noteSuspects shows the newest suspect that is of interest: for the running
// kernel, newer than what runs, and not withdrawn.
func (a *Agent) noteSuspects() {
	in, err := a.situation(nil)
	if err != nil {
		a.note(areaMachine, err)
		return
	}
	var runs livepatch.Version
	if ours := in.ours(); len(ours) > 0 {
		runs = ours[0].version
	}
	var held error
	for _, s := range a.memory.Suspects {
		if s.Kernel == a.facts.Kernel.Target() && s.Version.Compare(runs) > 0 && !a.withdrawn(s.Version) {
			runs, held = s.Version, s.err()
		}
	}
	a.note(areaGuard, held)
}

// withdrawn tells that the signed catalogue withdraws a version.
func (a *Agent) withdrawn(v livepatch.Version) bool {
	if a.catalogue == nil {
		return false
	}
	p := a.catalogue.Find(v)
	return p != nil && p.Withdrawn != nil
}

// attemptID names the attempt of a journal, the same each time it is asked.
func attemptID(j *journal) string {
	sum := sha256.Sum256([]byte("suspect\n" + j.BootID + "\n" + j.Module + "\n" + j.Started.String()))
	return hex.EncodeToString(sum[:16])
}

// openCache reads the signed metadata of the last check.
func (a *Agent) openCache() {
	err := a.openStream()
	if err == nil {
		a.catalogue, err = a.reader.Cached(a.facts.Kernel.Target())
	}
	switch livepatch.CodeOf(err) {
	case livepatch.CodeNotFound, livepatch.CodeUnsupported:
		err = nil // nothing is kept for this kernel: it is a new one
	}
	a.note(areaStream, err)
}

// atBoot loads what ran before the reboot, without asking anybody: the operator's
// signature on catalogue and module is verified again, the server is not needed.
func (a *Agent) atBoot(ctx context.Context) {
	b := a.memory.Boot
	if b == nil || a.catalogue == nil || b.Kernel != a.facts.Kernel.Target() || a.memory.Held {
		return
	}
	in, err := a.situation(nil)
	if err != nil {
		a.note(areaMachine, err)
		return
	}
	p := a.catalogue.Find(b.Version)
	if len(in.loaded) > 0 || p == nil {
		return // the daemon was restarted, not the machine
	}
	if err := admissible(p, a.facts.Kernel, &a.memory); err != nil {
		a.o.Log.Info("not loaded at boot", "version", b.Version, "why", err)
		return
	}
	// The outcome is noted and reported.
	_ = a.apply(ctx, attempt{patch: p})
}

// stopped writes down that this boot ends in an orderly way, if it does: without
// the marker, a patch that was soaking is a suspect at the next boot.
func (a *Agent) stopped(ctx context.Context) error {
	if a.o.Stopping == nil || !a.o.Stopping(ctx) {
		return nil
	}
	return MarkOrderly(a.o.StateDir, a.o.Kernel)
}

// MarkOrderly writes the marker of an orderly shutdown of the running boot into the
// state folder. Only this boot's journal is cleared by it, so that one left over
// does no harm.
func MarkOrderly(stateDir string, k *kernel.System) error {
	f, err := k.Inspect()
	if err != nil {
		return err
	}
	d, err := openDir(stateDir)
	if err != nil {
		return err
	}
	return d.write(orderlyFile, []byte(f.BootID+"\n"))
}
