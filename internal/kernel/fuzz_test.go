package kernel

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"livepatch"
)

// A record that is written as the kernel writes it is read back, whatever its
// text; and what is read can be shown to people.
func FuzzParseLog(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;NET: Registered protocol family 10\n KEY=value\n"))
	f.Add([]byte("4,18446744073709551615,1,c;\\x5cx41 \\xff\n"))
	f.Add([]byte("9999999999,1,1,-;x\n,,,;\n1,2,3;x"))
	f.Fuzz(func(t *testing.T, log []byte) {
		for _, r := range ParseLog(log) {
			if r.Level < 0 || r.Level > 7 || r.Time < 0 {
				t.Errorf("record out of range: %+v", r)
			}
			if !utf8.ValidString(r.Text) || strings.ContainsFunc(r.Text, func(c rune) bool { return unicode.IsControl(c) && c != '\t' }) {
				t.Errorf("text is not fit to be shown: %q", r.Text)
			}
		}
		var kernelWrites strings.Builder
		for _, c := range log { // kernel/printk/printk.c, append_char
			if c < ' ' || c >= 127 || c == '\\' {
				fmt.Fprintf(&kernelWrites, "\\x%02x", c)
			} else {
				kernelWrites.WriteByte(c)
			}
		}
		got := ParseLog([]byte("30,7,2500,-;" + kernelWrites.String() + "\n"))
		if len(got) != 1 || got[0].Level != 6 || got[0].Seq != 7 {
			t.Fatalf("%q is read as %+v", kernelWrites.String(), got)
		}
		if printable(string(log)) && got[0].Text != string(log) {
			t.Errorf("text %q is read as %q", log, got[0].Text)
		}
	})
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c == utf8.RuneError || c != ' ' && !unicode.IsPrint(c) })
}

// However strange a log is: incidents come in its order, do not overlap, fit into
// a report and have a one-line signature.
func FuzzIncidents(f *testing.F) {
	f.Add("BUG: x\nOops: 0000 [#1]\nRIP: 0010:f+0x1/0x2\n---[ end trace ]---\nWARNING: CPU: 1 at a.c:1 f+0x1/0x2")
	f.Add("<1>[  1.0] Kernel panic - not syncing: hm\n<4>[ 1.1] [<0>] f+0x1/0x2")
	f.Fuzz(func(t *testing.T, dump string) {
		log := parseDump(dump)
		next := uint64(0)
		for _, in := range Incidents(log) {
			if in.Seq < next || len(in.Text) > livepatch.MaxEvidence {
				t.Errorf("incident at %d after %d, %d bytes", in.Seq, next, len(in.Text))
			}
			if in.Signature == "" || strings.Contains(in.Signature, "\n") {
				t.Errorf("signature %q", in.Signature)
			}
			next = in.Seq + 1
		}
		if got := tail(log, 100); len(got) > 100 {
			t.Errorf("tail has %d bytes", len(got))
		}
	})
}

// Whatever the list of modules is, only names that are safe in paths come out.
func FuzzParseLivepatchModules(f *testing.F) {
	f.Add("lp_1 16384 1 - Live 0x0000000000000000 (OEK)\nvirtio 1 2 a,b Live 0x0\n")
	f.Add("../x 1 1 - Live 0x0 (K)\n")
	f.Fuzz(func(t *testing.T, modules string) {
		for _, name := range parseLivepatchModules(modules) {
			if !livepatch.ValidModuleName(name) || !strings.Contains(modules, name) {
				t.Errorf("name %q", name)
			}
		}
	})
}

func FuzzFacts(f *testing.F) {
	f.Add("none [integrity] confidentiality", "1.5 2")
	f.Add("Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n", "btime 9\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		if mode := parseLockdown(a); strings.Contains(mode, "]") {
			t.Errorf("lockdown %q", mode)
		}
		if model := parseCPUModel(a); strings.Contains(model, "\n") {
			t.Errorf("model %q", model)
		}
		if stack := cleanStack(a); len(stack) > len(a) {
			t.Errorf("stack grew: %q", stack)
		}
		parseUptime(b)
		parseBootTime(b)
		if root, _ := parseRights(a); root && !bytes.Contains([]byte(a), []byte("Uid:")) {
			t.Error("root without a line that says so")
		}
	})
}
