package localapi

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"livepatch"
)

const (
	// near is how long before its end the coverage of a kernel is worth a word.
	near = 30 * 24 * time.Hour
	// shortList is how many vulnerabilities the short form names.
	shortList = 6
)

// Humane is what a person reads of a status, one "key: value" per line. Keys are
// unique; the first eight are those of the Canonical client. With verbose the
// fixes follow in paragraphs. age says how long ago something was; two texts of one
// status differ only in the line "last check".
func Humane(s Status, now time.Time, age func(at, now time.Time) string, verbose bool) string {
	var b humaneText
	b.line("last check", age(s.LastCheck, now))
	k, known := runningKernel(s)
	if known {
		b.line("kernel", k.Kernel)
	}
	b.line("server check-in", checkIn(s))
	if known {
		b.line("kernel state", kernelState(k, now))
		b.line("patch state", patchState(k))
		if !k.Livepatch.Version.IsZero() {
			b.line("patch version", k.Livepatch.Version.String())
		}
	}
	b.line("tier", string(s.Tier))
	b.line("machine id", s.MachineID)
	if !verbose {
		b.line("fixed", cveList(patched(k.Livepatch.Fixes), "none"))
	}
	b.line("outstanding", cveList(s.Outstanding, "none known"))
	for i, p := range s.Problems {
		text := p.Message
		if !p.Since.IsZero() {
			text += " (since " + p.Since.UTC().Format("2006-01-02 15:04 UTC") + ")"
		}
		b.line(fmt.Sprintf("problem %d", i+1), text)
	}
	if len(s.Problems) == 0 {
		b.line("problems", "none")
	}
	if s.Trusted != "" && (verbose || s.Trusted == "tls") {
		b.line("trust", Trust(s.Trusted))
	}
	if verbose {
		b.details(s, k)
	}
	return b.String()
}

// humaneText is lines of "key: value".
type humaneText struct{ strings.Builder }

// line writes one line, whatever line breaks the value has; nothing when it is
// empty.
func (b *humaneText) line(key, value string) {
	value = strings.Join(strings.Fields(value), " ")
	if value != "" {
		fmt.Fprintf(b, "%s: %s\n", key, value)
	}
}

// details writes what only the verbose form has.
func (b *humaneText) details(s Status, k KernelStatus) {
	b.line("client version", s.ClientVersion)
	b.line("architecture", s.Architecture)
	b.line("cpu model", s.CPUModel)
	if !s.BootTime.IsZero() {
		b.line("boot time", s.BootTime.Format(time.RFC3339))
	}
	if len(k.Livepatch.Fixes) == 0 {
		b.line("fixes", "none")
		return
	}
	b.WriteString("fixes:\n")
	for _, f := range k.Livepatch.Fixes {
		fmt.Fprintf(b, "  * %s%s\n", strings.ToLower(f.Name), unpatched(f))
		for _, l := range wrap(f.Description, 72) {
			fmt.Fprintf(b, "    %s\n", l)
		}
	}
}

// runningKernel is the entry of the kernel that runs.
func runningKernel(s Status) (k KernelStatus, ok bool) {
	for _, k := range s.Status {
		if k.Running {
			return k, true
		}
	}
	return KernelStatus{}, false
}

func checkIn(s Status) string {
	if s.ServerCheckIn == "" {
		return "not yet"
	}
	return s.ServerCheckIn
}

// kernelState says whether the kernel is covered, in the Canonical client's words.
func kernelState(k KernelStatus, now time.Time) string {
	date := k.UpgradeRequiredDate
	switch k.Supported {
	case livepatch.SupportedYes:
		if end, err := time.Parse(time.DateOnly, date); err == nil && end.Sub(now) < near {
			return "✓ kernel " + k.Kernel + " is covered by Livepatch until " + date + ", please install available kernel updates and reboot before then"
		}
		series := livepatch.Kernel{Release: k.Kernel}.Series()
		if series == "" {
			return "✓ kernel " + k.Kernel + " is covered by Livepatch"
		}
		return "✓ kernel series " + series + " is covered by Livepatch"
	case livepatch.SupportedNo:
		return "✗ kernel is not covered by Livepatch"
	case livepatch.SupportedEndOfLife:
		return "✗ kernel is no longer covered by Livepatch"
	case livepatch.SupportedUpgrade:
		if date == "" {
			return "✗ Livepatch coverage has ended; please upgrade the kernel and reboot"
		}
		return "✗ Livepatch coverage ended " + date + "; please upgrade the kernel and reboot"
	}
	return "✗ unable to determine kernel support status; please contact the operator of your Livepatch server"
}

// patchState says what the livepatch does, in the Canonical client's words where
// it has some.
func patchState(k KernelStatus) string {
	const logs = ", check system logs with `journalctl -u livepatchd`"
	switch k.Livepatch.State {
	case livepatch.StateUnapplied:
		return "⧗ a live kernel patch is published but not loaded here yet: it waits for this machine's turn, or for the next check"
	case livepatch.StateApplying:
		return "⧗ patching the kernel"
	case livepatch.StateApplied:
		return "✓ all applicable live kernel patch modules applied"
	case livepatch.StateNothingToApply:
		return "✓ no live kernel patches available for kernel " + k.Kernel
	case livepatch.StateAppliedWithBug:
		return "✗ Livepatch kernel module inserted but kernel bug detected" + logs
	case livepatch.StateApplyFailed:
		return "✗ the live kernel patch could not be applied or is suspected of a crash" + logs
	case livepatch.StateKernelUpgradeRequired:
		return "✗ kernel " + k.Kernel + " contains a vulnerability that cannot be remediated with live kernel patching, please upgrade and reboot"
	}
	switch k.Livepatch.CheckState {
	case livepatch.CheckNeeded:
		return "⧗ not known before the first check with the server"
	case livepatch.CheckFailed:
		return "✗ not known because the last check with the server failed"
	}
	return "✗ unknown error occurred" + logs
}

// Trust explains EnableResponse.Trusted and Status.Trusted.
func Trust(how string) string {
	switch how {
	case "package":
		return "the stream's first root came with the package"
	case "fingerprint":
		return "the stream's first root matched the fingerprint given at enable"
	case "tls":
		return "the stream's first root was taken over verified TLS; give --trust at enable to pin it"
	}
	return how
}

// patched are the fixes that are in force.
func patched(fixes []Fix) []Fix {
	return slices.DeleteFunc(slices.Clone(fixes), func(f Fix) bool { return !f.Patched })
}

// cveList counts and names vulnerabilities.
func cveList(fixes []Fix, none string) string {
	if len(fixes) == 0 {
		return none
	}
	names := make([]string, 0, shortList)
	for _, f := range fixes[:min(len(fixes), shortList)] {
		names = append(names, strings.ToUpper(f.Name))
	}
	if more := len(fixes) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("%d (%s)", len(fixes), strings.Join(names, ", "))
}

// wrap breaks text into lines of at most width columns, where words allow.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		switch {
		case line == "":
			line = w
		case len(line)+1+len(w) > width:
			lines, line = append(lines, line), w
		default:
			line += " " + w
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
