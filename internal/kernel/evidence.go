package kernel

import (
	"cmp"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"livepatch"
)

// Baseline is the kernel's health at one moment of one boot.
type Baseline struct {
	BootID string `json:"boot_id"`
	Taint  Taint  `json:"taint"`
	// Seq is the log's next sequence number.
	Seq uint64 `json:"seq"`
}

// Baseline takes the health now, to compare with after a load.
func (s *System) Baseline() Baseline {
	return Baseline{BootID: s.line("proc/sys/kernel/random/boot_id"), Taint: s.Taint(), Seq: s.LogMark()}
}

// Evidence is what went wrong in the kernel since a baseline.
type Evidence struct {
	// Kind is ReportOopsed, ReportWarned, or ReportHealthy when nothing was found.
	Kind livepatch.ReportKind
	// Signature and Text are those of the gravest incident, the first of them;
	// Text is at most livepatch.MaxEvidence bytes.
	Signature, Text string
	// Gained are taint bits that mean trouble and were not set before.
	Gained    Taint
	Incidents []Incident
}

// EvidenceSince looks at taint and log again. Taint counts even when the log has
// wrapped round meanwhile.
func (s *System) EvidenceSince(b Baseline) (Evidence, error) {
	log, err := s.Log(b.Seq)
	e := judge(Incidents(log), s.Taint().Gained(b.Taint)&TaintTrouble)
	return e, err
}

// judge chooses the gravest of what was found. Pure.
func judge(incidents []Incident, gained Taint) Evidence {
	e := Evidence{Kind: livepatch.ReportHealthy, Gained: gained, Incidents: incidents}
	switch {
	case gained&(TaintDied|TaintSoftLockup|TaintMachineCheck) != 0:
		e.Kind, e.Signature = livepatch.ReportOopsed, "taint:"+gained.String()
	case gained != 0:
		e.Kind, e.Signature = livepatch.ReportWarned, "taint:"+gained.String()
	}
	for _, kind := range []livepatch.ReportKind{livepatch.ReportOopsed, livepatch.ReportWarned} {
		i := slices.IndexFunc(incidents, func(in Incident) bool { return in.Kind == kind })
		if i >= 0 {
			if e.Kind != livepatch.ReportOopsed {
				e.Kind = kind
			}
			e.Signature, e.Text = incidents[i].Signature, incidents[i].Text
			break
		}
	}
	return e
}

// CrashRecord is a log that a crashing kernel left behind.
type CrashRecord struct {
	// Path is where it lies.
	Path string
	At   time.Time
	// Text is its end, at most livepatch.MaxEvidence bytes.
	Text      string
	Signature string
}

// CrashRecords are the logs that crashed kernels left in pstore, which systemd
// moves to /var/lib/systemd/pstore at boot, written after since; newest first.
// Machines without a pstore backend (EFI, ERST, ramoops) leave none.
func (s *System) CrashRecords(since time.Time) []CrashRecord {
	var files []string
	for _, pattern := range []string{"sys/fs/pstore/dmesg-*", "var/lib/systemd/pstore/*/dmesg*", "var/lib/systemd/pstore/dmesg*"} {
		matches, _ := filepath.Glob(s.path(pattern)) // fails on a bad pattern only
		files = append(files, matches...)
	}
	var records []CrashRecord
	for _, path := range files {
		if r, ok := readCrash(path, since); ok {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b CrashRecord) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.Path, b.Path))
	})
	return records
}

func readCrash(path string, since time.Time) (CrashRecord, bool) {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || !info.ModTime().After(since) {
		return CrashRecord{}, false
	}
	f, err := os.Open(path)
	if err != nil {
		return CrashRecord{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAttr))
	if err != nil || len(b) == 0 {
		return CrashRecord{}, false
	}
	r := CrashRecord{Path: path, At: info.ModTime().UTC()}
	log := parseDump(string(b))
	if found := Incidents(log); len(found) > 0 {
		r.Signature = found[0].Signature
	}
	r.Text = tail(log, livepatch.MaxEvidence)
	return r, true
}

// parseDump reads a log as pstore keeps it: a heading ("Panic#1 Part1") and lines
// "<4>[   12.345678] text".
func parseDump(dump string) []Record {
	var log []Record
	for line := range strings.Lines(dump) {
		line = strings.TrimSuffix(line, "\n")
		if level, rest, ok := strings.Cut(line, ">"); ok && strings.HasPrefix(level, "<") {
			line = rest
		}
		if stamp, rest, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(stamp, "[") {
			line = rest
		}
		log = append(log, Record{Seq: uint64(len(log)), Text: unescape(line)})
	}
	return log
}

// tail joins the last records that fit into limit bytes.
func tail(log []Record, limit int) string {
	start, size := len(log), 0
	for start > 0 && size+len(log[start-1].Text)+1 <= limit {
		start--
		size += len(log[start].Text) + 1
	}
	return text(log[start:], limit)
}
