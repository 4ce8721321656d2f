package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// seenBoot is the boot that the agent saw last, and how far it has looked at it.
// Every machine tells of crashes and warnings, also without a livepatch: whether a
// livepatch hurts is only known from comparing.
type seenBoot struct {
	Kernel livepatch.KernelTarget `json:"kernel"`
	// Since is when it was seen first, by this machine's clock.
	Since time.Time `json:"since"`
	// Mark is up to where log and taint were looked at; it names the boot.
	Mark kernel.Baseline `json:"mark"`
	// Told are the signatures that were found: each is reported once per boot.
	Told []string `json:"told,omitempty"`
}

// tell tells whether a signature is new, and notes it.
func (b *seenBoot) tell(signature string) bool {
	if slices.Contains(b.Told, signature) {
		return false
	}
	b.Told = append(b.Told[max(0, len(b.Told)+1-maxTold):], signature)
	return true
}

// maxUnasked is how many such reports a machine makes a day (UTC), so that one whose
// driver warns all the time, or that crashes in a loop, costs the server little. The
// judge counts the first of a kind anyway.
const maxUnasked = 10

// maxTold bounds the memory of a boot that lasts for years.
const maxTold = 100

// unasked counts the day's reports.
type unasked struct {
	Day     string `json:"day"`
	Reports int    `json:"reports"`
}

// take tells whether one more may be made at this time, and counts it.
func (u *unasked) take(now time.Time) bool {
	if day := now.UTC().Format(time.DateOnly); u.Day != day {
		*u = unasked{Day: day}
	}
	if u.Reports >= maxUnasked {
		return false
	}
	u.Reports++
	return true
}

// newBoot notes which boot this is, at the first start in it, and reports how the
// one before ended where nobody knows better: accused tells that the boot guard
// reports it. The journal must still be that of the boot before.
func (a *Agent) newBoot(ctx context.Context, accused bool) {
	old, now := a.memory.Seen, time.Now()
	if !a.enabled() || old != nil && old.Mark.BootID == a.facts.BootID {
		return
	}
	seen := &seenBoot{Kernel: a.facts.Kernel.Target(), Since: now, Mark: kernel.Baseline{BootID: a.facts.BootID}}
	switch {
	case old == nil:
		seen.Mark = a.o.Kernel.Baseline() // what was before was not ours to tell
	case !accused && a.orderlyBoot() != old.Mark.BootID && a.memory.Unasked.take(now):
		a.wentDown(ctx, old)
	}
	a.memory.Seen = seen
	// Noted. Until it is written the next start reports it again, under the same id.
	_ = a.saveMemory()
	a.o.Crash("boot:noted")
}

// orderlyBoot is the id of the last boot that ended in an orderly way.
func (a *Agent) orderlyBoot() string {
	marker, err := a.dir.read(orderlyFile, 256)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(marker))
}

// wentDown reports that a boot ended without a shutdown, with the version that ran
// in it.
func (a *Agent) wentDown(ctx context.Context, boot *seenBoot) {
	id := sha256.Sum256([]byte("rebooted\n" + a.identity.ID + "\n" + boot.Mark.BootID))
	r := livepatch.Report{
		ID: hex.EncodeToString(id[:16]), Kind: livepatch.ReportRebooted, BootID: boot.Mark.BootID,
		Detail: "the machine went down without a shutdown",
	}
	if j := a.journal; j != nil && j.BootID == boot.Mark.BootID {
		r.Version, r.Module = j.Version, j.Module
	}
	if boot.Kernel != a.facts.Kernel.Target() {
		r.Kernel = boot.Kernel
	}
	r.Signature, r.Evidence = a.lastWords(ctx, a.o.Kernel.CrashRecords(boot.Since))
	a.tell(r)
}

// lastWords is what the boot before left behind: the crash record that says most,
// else the end of its log.
func (a *Agent) lastWords(ctx context.Context, crashes []kernel.CrashRecord) (signature, words string) {
	if len(crashes) > 0 {
		// Small stores split a log over several records.
		i := slices.IndexFunc(crashes, func(r kernel.CrashRecord) bool { return strings.HasPrefix(r.Signature, "rip:") })
		if i < 0 {
			i = max(0, slices.IndexFunc(crashes, func(r kernel.CrashRecord) bool { return r.Signature != "" }))
		}
		return crashes[i].Signature, crashes[i].Text
	}
	if a.o.PreviousLog == nil {
		return "", ""
	}
	return kernel.LastWords(a.o.PreviousLog(ctx))
}

// look goes through what the kernel logged since the last look. With tell it
// reports each new signature, unless a livepatch soaks: those the health checks
// report. It is called when there is something else to do, never on its own account.
func (a *Agent) look(tell bool) {
	if !a.enabled() {
		return
	}
	seen, mark := a.memory.Seen, a.o.Kernel.Baseline()
	if seen == nil || seen.Mark.BootID != a.facts.BootID {
		a.memory.Seen = &seenBoot{Kernel: a.facts.Kernel.Target(), Since: time.Now(), Mark: mark}
		return
	}
	_, soaking := a.healthDue()
	before := seen.Mark
	seen.Mark = mark
	if soaking || !tell {
		return
	}
	e, err := a.o.Kernel.EvidenceSince(before)
	if err != nil {
		a.o.Log.Debug("kernel log", "err", err) // taint counts without it
	}
	found := e.Incidents
	if len(found) == 0 && e.Kind != livepatch.ReportHealthy {
		found = []kernel.Incident{{Kind: e.Kind, Signature: e.Signature, Title: "taint " + e.Gained.String()}}
	}
	version, module := a.inForce()
	for _, in := range found {
		if !seen.tell(in.Signature) || !a.memory.Unasked.take(time.Now()) {
			continue
		}
		a.o.Log.Info("kernel trouble", "kind", string(in.Kind), "signature", in.Signature, "version", version)
		a.tell(livepatch.Report{
			Kind: in.Kind, Version: version, Module: module, Signature: in.Signature, Evidence: clip(in.Text),
			Detail: fmt.Sprintf("the kernel logged %q", in.Title),
		})
		a.blame(in)
	}
}

// blame marks the livepatch in force for trouble in its own code. At any age that is
// its fault, and the owner is to see it; other trouble after the soak is not.
func (a *Agent) blame(in kernel.Incident) {
	j := a.journal
	if j == nil || j.BootID != a.facts.BootID || !kernel.TraceNames(in.Text, j.Module) {
		return
	}
	found := *j
	found.Found = in.Kind
	a.troubled(&found, kernel.Evidence{Kind: in.Kind, Signature: in.Signature, Text: in.Text, Incidents: []kernel.Incident{in}})
	a.note(areaDisk, a.saveJournal(&found))
}

// inForce is the livepatch of ours that the kernel has; zero for none.
func (a *Agent) inForce() (livepatch.Version, string) {
	if j := a.journal; j != nil && j.BootID == a.facts.BootID {
		return j.Version, j.Module
	}
	in, err := a.situation(nil)
	if err != nil {
		return livepatch.Version{}, ""
	}
	if ours := in.ours(); len(ours) > 0 {
		return ours[0].version, ours[0].Name
	}
	return livepatch.Version{}, ""
}
