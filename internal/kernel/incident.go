package kernel

import (
	"regexp"
	"strings"

	"livepatch"
)

// Incident is one warning, oops or panic in a kernel log.
type Incident struct {
	// Kind is ReportWarned or ReportOopsed.
	Kind livepatch.ReportKind
	// Title is its first line.
	Title string
	// Signature names the place, for example "rip:tcp_ack+0x1b"; it has no
	// addresses, process names or numbers that differ between machines.
	Signature string
	// Text is the log from the first line to the end of the trace.
	Text string
	// Seq is the sequence number of its first record.
	Seq uint64
}

// What begins an incident (lib/bug.c, kernel/panic.c, arch/x86/mm/fault.c,
// kernel/watchdog.c, kernel/hung_task.c, mm/kasan/report.c).
var (
	oopsRE = regexp.MustCompile(`^(BUG: |Kernel panic - not syncing|Oops(?::| )|kernel BUG at |Internal error: |general protection fault|Unable to handle kernel |watchdog: BUG: |stack segment:|double fault:|invalid opcode:|divide error:)`)
	warnRE = regexp.MustCompile(`^(WARNING: |INFO: task .* blocked for more than |rcu: INFO: .*detected (?:expedited )?stall|unchecked MSR )`)
	// ripRE finds the place: x86's "RIP: 0010:func+0x1b/0x60", arm64's
	// "pc : func+0x1b/0x60", s390's and POWER's "func+0x1b/0x60" after PSW and NIP.
	ripRE  = regexp.MustCompile(`(?:RIP: [0-9a-f]+:|\bpc : |NIP \[[0-9a-f]+\] |Krnl PSW : .*\()(?:\[<[0-9a-f]+>\] )?([A-Za-z_][\w.$]*\+0x[0-9a-f]+)/`)
	warnAt = regexp.MustCompile(` at (\S+:\d+)(?: ([A-Za-z_][\w.$]*\+0x[0-9a-f]+)/)?`)
	callRE = regexp.MustCompile(`^\s(?:\[<[0-9a-f]+>\] )?([A-Za-z_][\w.$]*\+0x[0-9a-f]+)/`)
	endRE  = regexp.MustCompile(`---\[ end `)
)

// maxIncident is how many records an incident may have: a trace with registers and
// modules has about 60.
const maxIncident = 120

// Incidents finds the warnings, oopses and panics in a log, in its order. What
// follows an incident up to its end mark belongs to it: an oops is one incident,
// not one for each of its lines. Pure.
func Incidents(log []Record) []Incident {
	var found []Incident
	for i := 0; i < len(log); {
		kind := incidentKind(log[i].Text)
		if kind == "" {
			i++
			continue
		}
		end := incidentEnd(log, i)
		found = append(found, incident(kind, log[i:end]))
		i = end
	}
	return found
}

func incidentKind(line string) livepatch.ReportKind {
	switch {
	case oopsRE.MatchString(line):
		return livepatch.ReportOopsed
	case warnRE.MatchString(line):
		return livepatch.ReportWarned
	}
	return ""
}

// incidentEnd is the index behind the incident that begins at start.
func incidentEnd(log []Record, start int) int {
	limit := min(len(log), start+maxIncident)
	for i := start + 1; i < limit; i++ {
		if endRE.MatchString(log[i].Text) {
			return i + 1
		}
	}
	return limit
}

// TraceNames tells whether a trace in the log goes through the module: the kernel
// writes "function+0x1b/0x60 [module]", and with CONFIG_STACKTRACE_BUILD_ID
// "[module build-id]" (kernel/kallsyms.c, __sprint_symbol). Pure.
func TraceNames(log, module string) bool {
	return strings.Contains(log, "["+module+"]") || strings.Contains(log, "["+module+" ")
}

func incident(kind livepatch.ReportKind, log []Record) Incident {
	in := Incident{
		Kind: kind, Title: log[0].Text, Seq: log[0].Seq,
		Text: text(log, livepatch.MaxEvidence),
	}
	for _, r := range log[1:] {
		// A warning that turns into a panic (panic_on_warn) is a panic.
		if incidentKind(r.Text) == livepatch.ReportOopsed {
			in.Kind = livepatch.ReportOopsed
		}
	}
	in.Signature = signature(log)
	return in
}

// signature names the incident by the instruction pointer, else by the place in
// the source, else by the first function of the trace, else by the title without
// its numbers.
func signature(log []Record) string {
	for _, r := range log {
		if m := ripRE.FindStringSubmatch(r.Text); m != nil {
			return "rip:" + m[1]
		}
	}
	if m := warnAt.FindStringSubmatch(log[0].Text); m != nil {
		return "at:" + m[1]
	}
	for _, r := range log[1:] {
		if m := callRE.FindStringSubmatch(r.Text); m != nil {
			return "call:" + m[1]
		}
	}
	return "text:" + numberRE.ReplaceAllString(strings.TrimSpace(log[0].Text), "N")
}

var numberRE = regexp.MustCompile(`(?:0x)?[0-9a-f]*[0-9][0-9a-f]*`)
