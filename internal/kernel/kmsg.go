package kernel

import (
	"bytes"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Record is one message of the kernel log.
type Record struct {
	// Level is 0 (emergency) to 7 (debug).
	Level int
	// Seq numbers records from boot on.
	Seq uint64
	// Time is since boot.
	Time time.Duration
	Text string
}

// ParseLog reads records as /dev/kmsg gives them, "PRIO,SEQ,MICROS,FLAGS;TEXT",
// followed by lines " KEY=VALUE" that are left out
// (Documentation/ABI/testing/dev-kmsg). Lines of another form are skipped.
func ParseLog(log []byte) []Record {
	var records []Record
	for line := range bytes.Lines(log) {
		if r, ok := parseRecord(strings.TrimSuffix(string(line), "\n")); ok {
			records = append(records, r)
		}
	}
	return records
}

func parseRecord(line string) (Record, bool) {
	head, text, ok := strings.Cut(line, ";")
	fields := strings.Split(head, ",")
	if !ok || len(fields) < 4 {
		return Record{}, false
	}
	prio, err1 := strconv.ParseUint(fields[0], 10, 32)
	seq, err2 := strconv.ParseUint(fields[1], 10, 64)
	micros, err3 := strconv.ParseUint(fields[2], 10, 53)
	if err1 != nil || err2 != nil || err3 != nil {
		return Record{}, false
	}
	return Record{
		Level: int(prio & 7), // the rest is the facility
		Seq:   seq,
		Time:  time.Duration(micros) * time.Microsecond,
		Text:  unescape(text),
	}, true
}

// unescape undoes \xNN, which the kernel writes for bytes that do not print and
// for the backslash itself. Control characters come out as spaces: the text is shown
// to people.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				c, i = byte(n), i+3
			}
		}
		b.WriteByte(c)
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(b.String(), "?"))
}

// kmsg is the device that gives records with their sequence numbers.
const kmsg = "dev/kmsg"

// Log returns the records from sequence number since on; 0 is all that the kernel
// still has. It does not wait for more.
func (s *System) Log(since uint64) ([]Record, error) {
	b, err := readLog(s.path(kmsg))
	if err != nil {
		return nil, err
	}
	records := ParseLog(b)
	for i, r := range records {
		if r.Seq >= since {
			return records[i:], nil
		}
	}
	return nil, nil
}

// LogMark is the sequence number that the next record will have; 0 when the log
// cannot be read. Log(mark) then gives what came after.
func (s *System) LogMark() uint64 {
	records, err := s.Log(0)
	if err != nil || len(records) == 0 {
		return 0
	}
	return records[len(records)-1].Seq + 1
}

// logText is what the kernel logged since mark, at most maxRefusal bytes.
func (s *System) logText(mark uint64) string {
	records, err := s.Log(mark)
	if err != nil {
		return ""
	}
	return text(records, maxRefusal)
}

// maxRefusal bounds the log that is kept in the error of a refused load, in bytes.
const maxRefusal = 4 << 10

// text joins records, dropping whole lines from the end beyond limit bytes.
func text(records []Record, limit int) string {
	var b strings.Builder
	for _, r := range records {
		if b.Len()+len(r.Text)+1 > limit {
			break
		}
		b.WriteString(r.Text)
		b.WriteByte('\n')
	}
	return b.String()
}
