package kernel_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
)

func TestEvidence(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		happens         func(*kerneltest.Kernel)
		kind            livepatch.ReportKind
		signature, text string
	}{
		"nothing": {func(k *kerneltest.Kernel) { k.Log("eth0: link up") }, livepatch.ReportHealthy, "", ""},
		"warning": {func(k *kerneltest.Kernel) { k.Warn("tcp_ack+0x1b") }, livepatch.ReportWarned, "rip:tcp_ack+0x1b", "WARNING: CPU: 0"},
		"oops":    {func(k *kerneltest.Kernel) { k.Oops("tcp_ack+0x1b") }, livepatch.ReportOopsed, "rip:tcp_ack+0x1b", "NULL pointer"},
		"a warning, then an oops": {
			func(k *kerneltest.Kernel) { k.Warn("one+0x1"); k.Log("fine"); k.Oops("two+0x2") },
			livepatch.ReportOopsed, "rip:two+0x2", "NULL pointer",
		},
		"taint without a log": {
			func(k *kerneltest.Kernel) { k.Set("proc/sys/kernel/tainted", "128\n") },
			livepatch.ReportOopsed, "taint:D", "",
		},
		"taint of a livepatch": {
			func(k *kerneltest.Kernel) { k.Set("proc/sys/kernel/tainted", "45056\n") }, // OEK
			livepatch.ReportHealthy, "", "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kerneltest.New(t)
			s := k.System()
			k.Warn("before+0x1") // must not be blamed on what comes after
			k.Set("proc/sys/kernel/tainted", "0\n")
			base := s.Baseline()
			tt.happens(k)
			e, err := s.EvidenceSince(base)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind != tt.kind || e.Signature != tt.signature || !strings.Contains(e.Text, tt.text) {
				t.Errorf("evidence = %s %q %q, want %s %q with %q", e.Kind, e.Signature, e.Text, tt.kind, tt.signature, tt.text)
			}
		})
	}
}

func TestBaselineTellsBootsApart(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	s := k.System()
	before := s.Baseline()
	load(t, s, patch("lp_1"))
	k.Reboot()
	if s.Baseline().BootID == before.BootID {
		t.Error("two boots have one id")
	}
	if got := loaded(t, s); len(got) != 0 || s.HasModule("lp_1") {
		t.Errorf("a reboot left %v", got)
	}
}

func TestCrashRecords(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	s := k.System()
	k.Crash("lp_cmdline+0x4")
	records := s.CrashRecords(time.Time{})
	if len(records) != 1 {
		t.Fatalf("records = %+v, want one", records)
	}
	if r := records[0]; r.Signature != "rip:lp_cmdline+0x4" || !strings.Contains(r.Text, "Kernel panic - not syncing") {
		t.Errorf("record = %+v", r)
	}
	if later := s.CrashRecords(records[0].At); len(later) != 0 {
		t.Errorf("an old crash is taken for a new one: %+v", later)
	}
	// Where systemd keeps them after it has emptied pstore.
	archived := filepath.Join(k.Root, "var/lib/systemd/pstore/1748764800")
	if err := os.MkdirAll(archived, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(records[0].Path, filepath.Join(archived, "dmesg.txt")); err != nil {
		t.Fatal(err)
	}
	if again := s.CrashRecords(time.Time{}); len(again) != 1 || again[0].Text != records[0].Text {
		t.Errorf("archived records = %+v, want the same", again)
	}
}

func TestIncidentSignatures(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ log, kind, signature string }{
		"x86 oops": {
			"BUG: unable to handle page fault for address: ffffb6a1c0123000\nRIP: 0010:__x64_sys_read+0x1b/0x20 [lp_7]\n---[ end trace 0 ]---",
			"oopsed", "rip:__x64_sys_read+0x1b",
		},
		"arm64 oops": {
			"Unable to handle kernel NULL pointer dereference at virtual address 0000000000000010\nInternal error: Oops: 0000000096000004 [#1] SMP\npc : tcp_v4_rcv+0x9c/0xc00\nlr : ip_rcv+0x10/0x20",
			"oopsed", "rip:tcp_v4_rcv+0x9c",
		},
		"s390 oops": {
			"Unable to handle kernel pointer dereference in virtual kernel address space\nKrnl PSW : 0704c00180000000 000003ff8012a0b2 (lp_show+0x32/0x50 [lp_1])",
			"oopsed", "rip:lp_show+0x32",
		},
		"POWER oops": {
			"BUG: Kernel NULL pointer dereference on read at 0x00000010\nNIP [c0000000001234ab] tcp_ack+0x1b/0x90",
			"oopsed", "rip:tcp_ack+0x1b",
		},
		"warning without registers": {
			"WARNING: CPU: 3 PID: 77 at kernel/livepatch/core.c:989 __klp_enable_patch+0x10/0x20 [x]",
			"warned", "at:kernel/livepatch/core.c:989",
		},
		"hung task": {
			"INFO: task jbd2/vda1-8:231 blocked for more than 120 seconds.\n      Tainted: G\nCall Trace:\n <TASK>\n __schedule+0x351/0xa20\n schedule+0x5d/0xe0",
			"warned", "call:__schedule+0x351",
		},
		"RCU stall": {
			"rcu: INFO: rcu_preempt self-detected stall on CPU\nRIP: 0010:spin+0x4/0x10",
			"warned", "rip:spin+0x4",
		},
		"soft lockup": {
			"watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [curl:412]\nRIP: 0010:spin+0x4/0x10",
			"oopsed", "rip:spin+0x4",
		},
		"panic_on_warn": {
			"WARNING: CPU: 0 PID: 1 at a/b.c:1 f+0x1/0x2\nKernel panic - not syncing: panic_on_warn set ...",
			"oopsed", "at:a/b.c:1",
		},
		"panic alone": {
			"Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
			"oopsed", "text:Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(N,N)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log []kernel.Record
			for line := range strings.SplitSeq(tt.log, "\n") {
				log = append(log, kernel.Record{Text: line})
			}
			got := kernel.Incidents(log)
			if len(got) != 1 {
				t.Fatalf("incidents = %+v, want one", got)
			}
			if string(got[0].Kind) != tt.kind || got[0].Signature != tt.signature {
				t.Errorf("got %s %q, want %s %q", got[0].Kind, got[0].Signature, tt.kind, tt.signature)
			}
		})
	}
}

func TestParseLog(t *testing.T) {
	t.Parallel()
	log := kernel.ParseLog([]byte("6,339,5140900,-;NET: Registered protocol family 10\n" +
		" SUBSYSTEM=net\n" +
		"30,340,5690716,-,caller=T1;udevd\\x5c80 \\x1b[31mred\n" +
		"not a record\n"))
	want := []kernel.Record{
		{Level: 6, Seq: 339, Time: 5140900 * time.Microsecond, Text: "NET: Registered protocol family 10"},
		{Level: 6, Seq: 340, Time: 5690716 * time.Microsecond, Text: "udevd\\80  [31mred"},
	}
	if len(log) != len(want) || log[0] != want[0] || log[1] != want[1] {
		t.Errorf("got %+v\nwant %+v", log, want)
	}
}

func TestTaintString(t *testing.T) {
	t.Parallel()
	for taint, want := range map[kernel.Taint]string{
		0: "",
		kernel.TaintOutOfTree | kernel.TaintUnsigned | kernel.TaintLivepatch: "OEK",
		kernel.TaintDied | 1<<40: "D+40",
	} {
		if got := taint.String(); got != want {
			t.Errorf("taint %d = %q, want %q", uint64(taint), got, want)
		}
	}
}

// TestLastWordsKeepTheIncident: the machine lived on after the oops and logged more
// than a report can carry; where it crashed is what is kept.
func TestLastWordsKeepTheIncident(t *testing.T) {
	t.Parallel()
	noise := strings.Repeat("eth0: link is "+strings.Repeat("x", 80)+"\n", 300)
	oops := strings.Join(kerneltest.OopsLines("tcp_ack+0x1b"), "\n") + "\n"
	for name, tt := range map[string]struct{ log, signature string }{
		"long ago":             {noise + oops + noise, "rip:tcp_ack+0x1b"},
		"at the end":           {noise + oops, "rip:tcp_ack+0x1b"},
		"a warning before":     {strings.Join(kerneltest.WarnLines("slow+0x1"), "\n") + "\n" + noise + oops + noise, "rip:tcp_ack+0x1b"},
		"panic comes of it":    {oops + "Kernel panic - not syncing: Fatal exception\n", "rip:tcp_ack+0x1b"},
		"larger than a report": {noise + strings.Replace(oops, "Call Trace:\n", "Call Trace:\n"+noise, 1) + noise, "rip:tcp_ack+0x1b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signature, words := kernel.LastWords(tt.log)
			if signature != tt.signature || !strings.Contains(words, "RIP: 0010:tcp_ack+0x1b") || !strings.Contains(words, "Call Trace:") {
				t.Errorf("signature %q, words begin with %.200q", signature, words)
			}
			if len(words) > livepatch.MaxEvidence {
				t.Errorf("%d bytes", len(words))
			}
		})
	}
	if signature, words := kernel.LastWords(noise); signature != "" || !strings.HasSuffix(noise, words) || len(words) < livepatch.MaxEvidence/2 {
		t.Errorf("without an incident: %q and %d bytes", signature, len(words))
	}
}
