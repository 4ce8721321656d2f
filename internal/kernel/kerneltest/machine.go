package kerneltest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// MachineID is the fake's /etc/machine-id.
const MachineID = "0123456789abcdef0123456789abcdef"

// firstBoot is when the fake booted first; each boot is an hour after the last.
var firstBoot = time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC)

// Identify makes the machine run another kernel, as after an upgrade and a reboot.
// An empty build id leaves /sys/kernel/notes without one.
func (k *Kernel) Identify(running livepatch.Kernel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.identity(running)
}

// Set writes a file below Root: what a test wants the kernel to say, for example
// Set("proc/sys/kernel/modules_disabled", "1\n").
func (k *Kernel) Set(name, content string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.put(name, content)
}

// Unset removes a file or folder below Root.
func (k *Kernel) Unset(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(name)
}

// Log writes lines to the kernel log at level warning.
func (k *Kernel) Log(lines ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log(4, lines...)
}

// Oops makes the kernel log an oops at a place such as "tcp_ack+0x1b" and live on,
// tainted.
func (k *Kernel) Oops(place string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log(1, OopsLines(place)...)
	k.setTaint(k.taint() | kernel.TaintDied)
}

// Warn makes the kernel log a warning at a place and live on, tainted.
func (k *Kernel) Warn(place string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log(4, WarnLines(place)...)
	k.setTaint(k.taint() | kernel.TaintWarned)
}

// OopsLines is what the kernel logs at an oops.
func OopsLines(place string) []string {
	return []string{
		"BUG: kernel NULL pointer dereference, address: 0000000000000010",
		"#PF: supervisor read access in kernel mode",
		"Oops: 0000 [#1] PREEMPT SMP PTI",
		"CPU: 1 PID: 412 Comm: curl Tainted: G           OEK    6.1.0-47-cloud-amd64 #1",
		"RIP: 0010:" + place + "/0x120",
		"Call Trace:",
		" <TASK>",
		" do_syscall_64+0x55/0xb0",
		" </TASK>",
		"---[ end trace 0000000000000000 ]---",
	}
}

// WarnLines is what the kernel logs at a WARN_ON.
func WarnLines(place string) []string {
	return []string{
		"------------[ cut here ]------------",
		"WARNING: CPU: 0 PID: 1 at net/ipv4/tcp_input.c:3870 " + place + "/0x120",
		"RIP: 0010:" + place + "/0x120",
		"---[ end trace 0000000000000000 ]---",
	}
}

// Reboot boots the machine again: another boot id, no livepatch, no taint, an
// empty log. Faults stay as they were ordered.
func (k *Kernel) Reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.boot()
}

// Crash is a Reboot that leaves the log of a panic at place in pstore, as a
// machine with such a store does.
func (k *Kernel) Crash(place string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var dump strings.Builder
	dump.WriteString("Panic#1 Part1\n")
	for i, line := range append(OopsLines(place), "Kernel panic - not syncing: Fatal exception") {
		fmt.Fprintf(&dump, "<1>[%5d.%06d] %s\n", 100, i, line)
	}
	k.put("sys/fs/pstore/dmesg-efi-"+strconv.Itoa(k.boots), dump.String())
	k.boot()
}

// boot writes what a boot begins with.
func (k *Kernel) boot() {
	k.boots++
	k.drop(func(p *patch) bool { p.turn++; return true })
	for _, m := range k.modules {
		k.remove(filepath.Join("sys/module", m.Name))
	}
	k.modules, k.seq = nil, 0
	k.writeTasks(nil, true)
	booted := firstBoot.Add(time.Duration(k.boots-1) * time.Hour)
	for name, content := range map[string]string{
		"proc/sys/kernel/random/boot_id":           fmt.Sprintf("00000000-0000-4000-8000-%012d\n", k.boots),
		"proc/sys/kernel/modules_disabled":         "0\n",
		"proc/stat":                                fmt.Sprintf("cpu  1 2 3 4\nbtime %d\n", booted.Unix()),
		"proc/uptime":                              "61.25 100.00\n",
		"proc/cpuinfo":                             "processor\t: 0\nmodel name\t: Fake CPU @ 2.00GHz\n",
		"proc/self/status":                         "Name:\tlivepatchd\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
		"proc/self/patch_state":                    "-1\n",
		"proc/1/environ":                           "HOME=/\x00TERM=linux\x00",
		"sys/kernel/security/lockdown":             "[none] integrity confidentiality\n",
		"sys/module/module/parameters/sig_enforce": "N\n",
		"etc/machine-id":                           MachineID + "\n",
		"dev/kmsg":                                 "",
	} {
		k.put(name, content)
	}
	k.setTaint(0)
	k.writeModules()
	k.mkdir("sys/kernel/livepatch")
	k.log(5, "Linux version "+k.release)
}

func (k *Kernel) identity(running livepatch.Kernel) {
	k.release = running.Release
	k.put("proc/sys/kernel/osrelease", running.Release+"\n")
	k.put("proc/sys/kernel/version", running.Version+"\n")
	machine := running.Arch
	if machine == "amd64" {
		machine = "x86_64"
	}
	k.put("proc/sys/kernel/arch", machine+"\n")
	k.put("sys/kernel/notes", string(Notes(running.BuildID)))
	k.remove("proc/version_signature")
	if running.Signature != "" {
		k.put("proc/version_signature", "Ubuntu "+running.Signature+" 6.8.12\n")
	}
}

// Notes is /sys/kernel/notes of a kernel: a note of Xen's, as x86 has, and the
// build id, if any, given in hex.
func Notes(buildID string) []byte {
	note := func(owner string, kind uint32, desc []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(len(owner)+1))
		b = binary.NativeEndian.AppendUint32(b, uint32(len(desc)))
		b = binary.NativeEndian.AppendUint32(b, kind)
		b = append(b, owner...)
		b = append(b, make([]byte, 4-len(owner)%4)...)
		b = append(b, desc...)
		return append(b, make([]byte, -len(desc)&3)...)
	}
	notes := note("Xen", 6, []byte("linux\x00"))
	if id, err := hex.DecodeString(buildID); err == nil && len(id) > 0 {
		notes = append(notes, note("GNU", 3, id)...)
	}
	return notes
}

// log appends records to the kernel log.
func (k *Kernel) log(level int, lines ...string) {
	f, err := os.OpenFile(filepath.Join(k.Root, "dev/kmsg"), os.O_WRONLY|os.O_APPEND, 0)
	k.check(err)
	defer f.Close()
	for _, line := range lines {
		_, err := fmt.Fprintf(f, "%d,%d,%d,-;%s\n", level, k.seq, 1000*k.seq, line)
		k.check(err)
		k.seq++
	}
}

func (k *Kernel) taint() kernel.Taint {
	n, _ := strconv.ParseUint(strings.TrimSpace(k.get("proc/sys/kernel/tainted")), 10, 64)
	return kernel.Taint(n)
}

func (k *Kernel) setTaint(t kernel.Taint) {
	k.put("proc/sys/kernel/tainted", strconv.FormatUint(uint64(t), 10)+"\n")
}

// writeModules writes /proc/modules.
func (k *Kernel) writeModules() {
	var b strings.Builder
	b.WriteString("virtio_net 61440 0 - Live 0x0000000000000000\n")
	for _, m := range k.modules {
		taints := "OE"
		if m.Livepatch {
			taints += "K"
		}
		fmt.Fprintf(&b, "%s 16384 1 - Live 0x0000000000000000 (%s)\n", m.Name, taints)
	}
	k.put("proc/modules", b.String())
}

// writeTasks makes the tasks that hold up a transition visible in /proc; those of
// the last one go.
func (k *Kernel) writeTasks(tasks []kernel.Task, applying bool) {
	entries, _ := os.ReadDir(filepath.Join(k.Root, "proc"))
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 1 {
			k.remove(filepath.Join("proc", e.Name()))
		}
	}
	behind := "1\n"
	if applying {
		behind = "0\n"
	}
	for _, t := range tasks {
		dir := filepath.Join("proc", strconv.Itoa(t.PID), "task", strconv.Itoa(max(t.TID, t.PID)))
		k.put(filepath.Join(dir, "patch_state"), behind)
		k.put(filepath.Join(dir, "comm"), t.Comm+"\n")
		var stack strings.Builder
		for line := range strings.Lines(t.Stack) {
			stack.WriteString("[<0>] " + line)
		}
		k.put(filepath.Join(dir, "stack"), stack.String())
	}
}

// show writes a patch's folder in /sys/kernel/livepatch.
func (k *Kernel) show(p *patch) {
	dir := filepath.Join("sys/kernel/livepatch", p.Name)
	k.put(filepath.Join(dir, "enabled"), flag(p.enabled))
	k.put(filepath.Join(dir, "transition"), flag(p.transition))
	for _, o := range p.Objects {
		k.put(filepath.Join(dir, o.Name, "patched"), "1\n")
		for _, f := range o.Functions {
			k.mkdir(filepath.Join(dir, o.Name, f+",1"))
		}
	}
}

func flag(on bool) string {
	if on {
		return "1\n"
	}
	return "0\n"
}

func (k *Kernel) get(name string) string {
	b, _ := os.ReadFile(filepath.Join(k.Root, name))
	return string(b)
}

// put replaces a file in one step, as a reader of /proc or /sys sees it.
func (k *Kernel) put(name, content string) {
	path := filepath.Join(k.Root, name)
	k.check(os.MkdirAll(filepath.Dir(path), 0o755))
	k.check(os.WriteFile(path+".new", []byte(content), 0o644))
	k.check(os.Rename(path+".new", path))
}

func (k *Kernel) mkdir(name string) { k.check(os.MkdirAll(filepath.Join(k.Root, name), 0o755)) }

// remove takes a file or folder away, a folder in one step.
func (k *Kernel) remove(name string) {
	path := filepath.Join(k.Root, name)
	away := filepath.Join(k.Root, ".gone")
	k.check(os.RemoveAll(away))
	if err := os.Rename(path, away); err != nil && !os.IsNotExist(err) {
		k.check(err)
	}
	k.check(os.RemoveAll(away))
}

// check fails the test on what cannot happen unless the disk is full.
func (k *Kernel) check(err error) {
	if err != nil {
		k.tb.Errorf("fake kernel: %v", err)
	}
}
