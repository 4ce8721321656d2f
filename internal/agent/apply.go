package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/elfobj"
	"livepatch/internal/kernel"
	"livepatch/internal/stream"
)

// attempt is one try to load one livepatch.
type attempt struct {
	patch *livepatch.Livepatch
	// grant is nil for a load at boot, of what ran before.
	grant *livepatch.Grant
	// fetch downloads the module into w; nil at boot, when only the cache counts.
	fetch func(ctx context.Context, w io.Writer) error
}

func (t attempt) grantID() string {
	if t.grant == nil {
		return ""
	}
	return t.grant.ID
}

// apply loads a livepatch: verify everything, journal, load, watch the transition,
// clean up. What it returns is in the reports and problems already. Before
// LoadFile, a failure has left the kernel untouched.
func (a *Agent) apply(ctx context.Context, t attempt) error {
	before := a.proven()
	a.working(livepatch.StateUnapplied)
	defer a.working("")
	f, err := a.prepare(ctx, t)
	if err != nil {
		return a.failed(ctx, t, before, err)
	}
	defer f.Close()
	switch ok, err := a.stillGranted(ctx, t.grant); {
	case err != nil:
		return a.failed(ctx, t, before, err)
	case !ok:
		a.o.Log.Info("not loaded: the server took its grant back", "version", t.patch.Version)
		return nil
	}
	j := &journal{
		BootID: a.facts.BootID, Kernel: a.facts.Kernel.Target(), Version: t.patch.Version, Module: t.patch.Module.Name,
		Grant: t.grantID(), Phase: phaseLoading, Baseline: a.o.Kernel.Baseline(), Tries: 1, Before: before,
	}
	j.At, j.Started = time.Now(), time.Now()
	if a.memory.Seen != nil {
		j.Known = slices.Clone(a.memory.Seen.Told)
	}
	if old := a.journal; old != nil && old.BootID == j.BootID && old.Phase == phaseLoading && old.Version == j.Version {
		j.Tries = old.Tries + 1
	}
	if err := a.saveJournal(j); err != nil {
		return a.failed(ctx, t, before, err)
	}
	a.o.Crash("apply:journalled")
	a.sweep(ctx)
	a.o.Log.Info("loading", "version", j.Version, "module", j.Module, "grant", j.Grant)
	if err := a.o.Kernel.LoadFile(ctx, f); err != nil {
		return a.failed(ctx, t, before, err)
	}
	a.o.Crash("apply:loaded")
	if err := a.phase(phaseTransition); err != nil {
		// The kernel has it; the journal still says loading, which guards as well.
		a.note(areaDisk, err)
	}
	a.working(livepatch.StateApplying)
	return a.finish(ctx)
}

// proven is the journal of what runs in this boot, or is on its way out, to go back
// to when an attempt fails; nil when nothing of ours runs.
func (a *Agent) proven() *journal {
	j := a.journal
	if j != nil && j.BootID == a.facts.BootID && j.Phase == phaseLoading {
		return j.Before // the daemon died before the kernel had it
	}
	if a.leaving() || j != nil && j.BootID == a.facts.BootID && (j.Phase == phaseSoaking || j.Phase == phaseHealthy) {
		return j
	}
	return nil
}

// prepare makes sure of everything that can be made sure of without the kernel,
// and returns the module's file, verified and open at its beginning.
func (a *Agent) prepare(ctx context.Context, t attempt) (*os.File, error) {
	if err := kernel.Refusal(a.facts); err != nil {
		return nil, err
	}
	if a.leaving() {
		return nil, livepatch.Errorf(livepatch.CodeConflict, "livepatch %s is still being taken back, and the kernel changes one livepatch at a time; it is tried again when that is done, or reboot", a.journal.Version)
	}
	if a.facts.SigEnforce && !t.patch.Module.Signed {
		return nil, livepatch.Errorf(livepatch.CodeUntrustedKey, "this kernel loads only signed modules (module.sig_enforce), and livepatch %s is not signed; ask the operator to publish it with a module signature", t.patch.Version)
	}
	name := filepath.Join(moduleDir, t.patch.Module.Name+".ko")
	f, err := a.openModule(name, t.patch)
	if err != nil && t.fetch != nil {
		err = a.dir.fill(name, func(w io.Writer) error { return t.fetch(ctx, w) })
		a.o.Crash("apply:fetched")
		if err == nil {
			f, err = a.openModule(name, t.patch)
		}
	}
	if err != nil {
		return nil, err
	}
	// The download may have taken longer than the grant is good for.
	if t.grant != nil && !a.clock.at(time.Now()).Before(t.grant.Expires) {
		_ = f.Close()
		return nil, livepatch.Errorf(livepatch.CodeExpired, "the server's grant for livepatch %s expired while it was downloaded; the next check brings a new one", t.patch.Version)
	}
	return f, nil
}

// openModule opens a cached module and holds its bytes, and what it says of
// itself, against what was signed. The same open file is then given to the kernel.
func (a *Agent) openModule(name string, p *livepatch.Livepatch) (*os.File, error) {
	f, err := os.Open(a.dir.file(name))
	if err != nil {
		return nil, diskError(a.dir.file(name), err)
	}
	err = func() error {
		b, err := io.ReadAll(io.LimitReader(f, p.Module.Size+1))
		if err != nil {
			return diskError(f.Name(), err)
		}
		if err := stream.VerifyModule(bytes.NewReader(b), p.Module); err != nil {
			return err
		}
		m, err := elfobj.ParseModule(b)
		if err != nil {
			return err
		}
		if err := sameModule(m, p, a.facts.Kernel); err != nil {
			return err
		}
		_, err = f.Seek(0, io.SeekStart)
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sameModule compares what a module says of itself with what was signed about it.
func sameModule(m livepatch.Module, p *livepatch.Livepatch, k livepatch.Kernel) error {
	release, _, _ := bytes.Cut([]byte(m.VerMagic), []byte(" "))
	switch {
	case string(release) != k.Release:
		return livepatch.Errorf(livepatch.CodeWrongKernel, "livepatch %s is a module for kernel %q, not for the running %s; it is not loaded", p.Version, release, k.Release)
	case m.Name != p.Module.Name, m.VerMagic != p.Module.VerMagic, m.Replace != p.Module.Replace:
		return livepatch.Errorf(livepatch.CodeTampered, "livepatch %s: the module says it is %s (%s), what was signed says %s (%s); it is not loaded", p.Version, m.Name, m.VerMagic, p.Module.Name, p.Module.VerMagic)
	}
	return nil
}

// phase moves the journal on.
func (a *Agent) phase(p phase) error {
	j := *a.journal
	// Not UTC, which drops the monotonic reading: a soak is not cut short by a
	// clock that is set.
	j.Phase, j.At = p, time.Now()
	if p == phaseSoaking {
		j.Before = nil
	}
	return a.saveJournal(&j)
}

// finish waits for the transition of the journalled module and settles the
// outcome.
func (a *Agent) finish(ctx context.Context) error {
	j := a.journal
	t, err := a.o.Kernel.WaitTransition(ctx, j.Module, a.settings.duration("transition-timeout"))
	switch {
	case err != nil && ctx.Err() != nil:
		// We are told to stop. The journal has it; the next start goes on here.
		return err
	case err != nil:
		return a.stuck(ctx, err)
	}
	a.o.Crash("apply:transitioned")
	if err := a.phase(phaseSoaking); err != nil {
		a.note(areaDisk, err)
	}
	if a.memory.Modules == nil {
		a.memory.Modules = map[string]livepatch.Version{}
	}
	a.memory.Modules[j.Module] = j.Version
	a.memory.Boot = &bootPatch{Kernel: j.Kernel, Version: j.Version, Module: j.Module}
	a.report(livepatch.Report{Kind: livepatch.ReportApplied, TransitionMillis: max(1, t.Duration.Milliseconds()), Vitals: a.o.Kernel.Vitals()})
	// A full disk is noted; the patch is in force all the same.
	_ = a.saveMemory()
	a.o.Crash("apply:remembered")
	a.o.Log.Info("applied", "version", j.Version, "module", j.Module, "transition", t.Duration)
	a.note(areaApply, nil)
	a.noteSuspects()
	a.note(areaHealth, nil)
	a.tidy(ctx)
	return nil
}

// tidy removes modules that a replacing patch has put out of use, and cached files
// of others. What cannot be removed now is tried again later.
func (a *Agent) tidy(ctx context.Context) {
	a.sweep(ctx)
	if a.memory.Boot != nil {
		if err := a.pruneModules(a.memory.Boot.Module); err != nil {
			a.o.Log.Warn("prune cache", "err", err)
		}
	}
}

// sweep removes our modules that are in the kernel but patch nothing: replaced,
// disabled by hand, or left by a daemon that was killed between disabling and
// removing. As long as one is there the kernel takes no other of its name.
func (a *Agent) sweep(ctx context.Context) {
	left, err := a.o.Kernel.Leftovers()
	if err != nil {
		a.o.Log.Warn("leftovers", "err", err)
	}
	for _, name := range left {
		if a.memory.version(a.catalogue, name).IsZero() && (a.journal == nil || a.journal.Module != name) {
			continue // somebody else's
		}
		if err := a.o.Kernel.Remove(ctx, name); err != nil {
			a.o.Log.Warn("remove module out of use", "module", name, "err", err)
		}
	}
}

// failed settles an attempt that the kernel has nothing of.
func (a *Agent) failed(ctx context.Context, t attempt, before *journal, cause error) error {
	if ctx.Err() != nil {
		return cause // we are told to stop; the next start tries again
	}
	a.noteApply(t.patch.Version, fmt.Errorf("livepatch %s was not applied: %w", t.patch.Version, cause))
	r := livepatch.Report{
		Kind: livepatch.ReportFailed, Version: t.patch.Version, Module: t.patch.Module.Name, Grant: t.grantID(),
		Code: livepatch.CodeOf(cause), Detail: cause.Error(), BootID: a.facts.BootID,
	}
	a.report(r)
	return a.rewind(before, cause)
}

// rewind puts the journal back to what runs now, after the outcome is in the
// reports.
func (a *Agent) rewind(before *journal, cause error) error {
	a.look(false)      // what the attempt made the kernel log is nobody else's
	_ = a.saveMemory() // noted; the report is in memory all the same
	a.o.Crash("apply:reported")
	if err := a.saveJournal(before); err != nil {
		a.note(areaDisk, err)
	}
	return cause
}

// stuck reverses a transition that did not end, and names who held it up.
func (a *Agent) stuck(ctx context.Context, cause error) error {
	j := a.journal
	r := livepatch.Report{Kind: livepatch.ReportStuck, Code: livepatch.CodeOf(cause), Detail: cause.Error()}
	var e *kernel.StuckError
	if errors.As(cause, &e) {
		r.Evidence = clip(e.Evidence())
	} else {
		r.Kind = livepatch.ReportFailed
	}
	a.o.Log.Warn("reversing", "version", j.Version, "err", cause)
	if err := a.o.Kernel.Reverse(ctx, j.Module, a.settings.duration("transition-timeout")); err != nil {
		if ctx.Err() != nil {
			return err
		}
		// It is still in the kernel, so the journal stays: a crash now is its fault,
		// and lookAgain takes the module out when the kernel lets it go.
		cause = livepatch.Errorf(livepatch.CodeOf(cause), "%w; taking it back did not work either (%v): it is looked at again each minute, and a reboot clears it", cause, err)
		r.Detail = cause.Error()
		a.noteApply(j.Version, cause)
		a.report(r)
		_ = a.saveMemory() // noted
		return cause
	}
	a.noteApply(j.Version, fmt.Errorf("livepatch %s was taken back: %w", j.Version, cause))
	a.report(r)
	return a.rewind(j.Before, cause)
}

// takeOut unloads modules, top first. What is to be loaded at the next boot is
// forgotten first: whatever happens then, a reboot ends without them.
func (a *Agent) takeOut(ctx context.Context, modules []string, grant, reason string) error {
	a.memory.Boot = nil
	if err := a.saveMemory(); err != nil {
		return err
	}
	a.o.Crash("unload:forgotten")
	for _, module := range modules {
		v := a.memory.version(a.catalogue, module)
		a.o.Log.Info("unloading", "version", v, "module", module, "reason", reason)
		err := a.o.Kernel.Disable(ctx, module, a.settings.duration("transition-timeout"))
		if err != nil {
			err = livepatch.Errorf(livepatch.CodeOf(err), "livepatch %s is to be unloaded (%s), but is still in the kernel: %w. Reboot this machine to be rid of it; it is not loaded again", v, reason, err)
			if a.note(areaApply, err) { // told once
				a.report(livepatch.Report{Kind: livepatch.ReportFailed, Version: v, Module: module, Grant: grant, Code: livepatch.CodeOf(err), Detail: err.Error()})
			}
			return err
		}
		a.report(livepatch.Report{Kind: livepatch.ReportUnloaded, Version: v, Module: module, Grant: grant, Detail: reason})
		a.o.Crash("unload:unloaded")
	}
	a.look(false)
	a.note(areaApply, nil)
	if a.journal != nil && slices.Contains(modules, a.journal.Module) {
		if err := a.saveJournal(nil); err != nil {
			return err
		}
	}
	return errors.Join(a.saveMemory(), a.pruneModules(""))
}

// noteApply remembers which version failed: its problem stays until that version
// is not the wanted one any more.
func (a *Agent) noteApply(v livepatch.Version, err error) {
	a.failedVersion = v
	a.note(areaApply, err)
}

// clip bounds evidence, at the front: a log's end tells most.
func clip(s string) string {
	if len(s) > livepatch.MaxEvidence {
		return s[len(s)-livepatch.MaxEvidence:]
	}
	return s
}

// report queues a report. What it does not say is taken from the journal.
func (a *Agent) report(r livepatch.Report) {
	if j := a.journal; j != nil && r.Version.IsZero() {
		r.Version, r.Module, r.Grant, r.BootID = j.Version, j.Module, j.Grant, j.BootID
	}
	a.tell(r)
}

// tell queues a report as it is.
func (a *Agent) tell(r livepatch.Report) {
	if r.BootID == "" {
		r.BootID = a.facts.BootID
	}
	if r.ID == "" {
		id, err := a.randomHex(16)
		if err != nil {
			a.o.Log.Error("report lost", "err", err)
			return
		}
		r.ID = id
	}
	r.At = time.Now().UTC()
	a.memory.queue(r)
}
