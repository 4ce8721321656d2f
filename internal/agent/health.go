package agent

import (
	"fmt"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// healthTimes are when after a load the kernel's health is looked at; the last
// one is the end of the soak.
func healthTimes(soak time.Duration) []time.Duration {
	times := []time.Duration{}
	for _, t := range []time.Duration{time.Minute, 5 * time.Minute} {
		if t < soak {
			times = append(times, t)
		}
	}
	return append(times, soak)
}

// healthDue is when the next health check is due; ok is false when none is.
func (a *Agent) healthDue() (at time.Time, ok bool) {
	j := a.journal
	if j == nil || j.Phase != phaseSoaking || j.BootID != a.facts.BootID {
		return time.Time{}, false
	}
	times := healthTimes(a.settings.duration("soak-time"))
	return j.At.Add(times[min(j.Checks, len(times)-1)]), true
}

// health makes the health check that is due, and reports. It returns true when
// there is news for the server.
func (a *Agent) health(now time.Time) (news bool) {
	due, ok := a.healthDue()
	if !ok || now.Before(due) {
		return false
	}
	j := *a.journal
	a.look(false) // all up to here is the checks' to report
	if !a.present(j.Module) {
		_ = a.saveJournal(nil) // somebody unloaded it; nothing is to be watched
		return true
	}
	e, err := a.o.Kernel.EvidenceSince(j.Baseline)
	if err != nil {
		// Taint counts even without the log.
		a.o.Log.Warn("kernel log", "err", err)
	}
	e = e.Without(j.Known)
	j.Checks++
	last := j.Checks >= len(healthTimes(a.settings.duration("soak-time")))
	a.o.Log.Info("health", "version", j.Version, "check", j.Checks, "found", string(e.Kind), "signature", e.Signature)
	if e.Kind == livepatch.ReportHealthy || e.Kind != j.Found {
		a.report(livepatch.Report{Kind: e.Kind, Signature: e.Signature, Evidence: clip(e.Text), Detail: a.finding(e), Vitals: a.o.Kernel.Vitals()})
	}
	if e.Kind != livepatch.ReportHealthy {
		j.Found = e.Kind
		if a.memory.Seen != nil {
			a.memory.Seen.tell(e.Signature)
		}
		a.troubled(&j, e)
	}
	if last {
		j.Phase, j.At = phaseHealthy, now
	}
	_ = a.saveMemory() // noted
	a.o.Crash("health:reported")
	a.note(areaDisk, a.saveJournal(&j))
	return true
}

// enough is the uptime after which boots that went down before are not held against
// the patch any more.
const enough = 24 * time.Hour

// outlived forgets how earlier boots ended once this one has lasted.
func (a *Agent) outlived(now time.Time) {
	j := a.journal
	if a.memory.Downs.Boots == 0 || j == nil || j.BootID != a.facts.BootID || j.Phase != phaseHealthy || now.Sub(j.Started) < enough {
		return
	}
	a.memory.Downs = downs{}
	_ = a.saveMemory() // noted
}

// finding puts what a health check found into a sentence; "" for nothing.
func (a *Agent) finding(e kernel.Evidence) string {
	switch {
	case e.Kind == livepatch.ReportHealthy:
		return ""
	case len(e.Incidents) > 0:
		return fmt.Sprintf("the kernel logged %q after livepatch %s was applied", e.Incidents[0].Title, a.journal.Version)
	}
	return fmt.Sprintf("the kernel gained the taint %s after livepatch %s was applied", e.Gained, a.journal.Version)
}

// troubled notes trouble for the status. An oops whose trace goes through the
// module makes it a suspect: at the next boot it would do so again.
func (a *Agent) troubled(j *journal, e kernel.Evidence) {
	why := a.finding(e)
	a.note(areaHealth, livepatch.Errorf(livepatch.CodeSuspect, "%s; look at the kernel log (journalctl -k). The patch stays in force; 'livepatch unload' takes it out", why))
	if e.Kind == livepatch.ReportOopsed && kernel.TraceNames(e.Text, j.Module) {
		a.memory.suspect(suspect{Kernel: j.Kernel, Version: j.Version, Module: j.Module, Reason: why, At: time.Now().UTC()})
	}
}
