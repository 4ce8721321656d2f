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

// Without is e without the incidents of these signatures.
func (e Evidence) Without(signatures []string) Evidence {
	return judge(slices.DeleteFunc(slices.Clone(e.Incidents), func(in Incident) bool { return slices.Contains(signatures, in.Signature) }), e.Gained)
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
	if i := gravest(incidents); i != nil {
		if e.Kind != livepatch.ReportOopsed {
			e.Kind = i.Kind
		}
		e.Signature, e.Text = i.Signature, i.Text
	}
	return e
}

// CrashRecord is a log that a crashing kernel left behind.
type CrashRecord struct {
	// Path is where it lies.
	Path string
	At   time.Time
	// Text and Signature are as LastWords has them.
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
	r.Signature, r.Text = LastWords(string(b))
	return r, true
}

// LastWords are the signature of the gravest incident at the end of a boot's kernel
// log, and at most livepatch.MaxEvidence bytes of the log: its end, or where that
// would cut the incident off, what follows the incident's first line. There the
// registers and the trace are. Without an incident the signature is empty. Lines may
// be as pstore or as journalctl -o cat has them.
func LastWords(dump string) (signature, words string) {
	log := parseDump(dump)
	words = tail(log, livepatch.MaxEvidence)
	i := gravest(Incidents(log))
	if i == nil {
		return "", words
	}
	if !strings.Contains(words, i.Text) {
		words = text(log[i.Seq:], livepatch.MaxEvidence) // parseDump numbers from 0
	}
	return i.Signature, words
}

// gravest is the first oops, else the first warning, else nil: what comes after an
// oops mostly comes of it.
func gravest(incidents []Incident) *Incident {
	for _, kind := range []livepatch.ReportKind{livepatch.ReportOopsed, livepatch.ReportWarned} {
		if i := slices.IndexFunc(incidents, func(in Incident) bool { return in.Kind == kind }); i >= 0 {
			return &incidents[i]
		}
	}
	return nil
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
