//go:build vm

package kernel

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kimage"
	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

var (
	v1 = lab.Module{Source: "cmdline", Name: lab.ModuleName(lab.Release, 1), Version: 1}
	v2 = lab.Module{Source: "cmdline", Name: lab.ModuleName(lab.Release, 2), Version: 2}
)

const (
	patched1 = "this has been live patched, version 1"
	patched2 = "this has been live patched, version 2"
)

func TestKernelSaysWhoItIs(t *testing.T) {
	t.Parallel()
	m := boot(t, nil)
	facts := result[kernel.Facts](t, m.must("inspect"))

	image := read(t, m.kernel.Image)
	buildID, err := kimage.BuildID(bytes.NewReader(image), int64(len(image)))
	check(t, err)
	if facts.Kernel.BuildID != buildID {
		t.Errorf("running kernel has build id %q, its image %q", facts.Kernel.BuildID, buildID)
	}
	if facts.Kernel.Release != lab.Release || facts.Kernel.Arch != "amd64" || facts.Kernel.Distribution() != "Debian" {
		t.Errorf("kernel takes itself for %+v", facts.Kernel)
	}
	if facts.BootID != m.BootID() {
		t.Errorf("boot id %q, the machine says %q", facts.BootID, m.BootID())
	}
	if !facts.Livepatch || !facts.Root || !facts.CapSysModule || facts.ModulesDisabled || facts.SigEnforce || facts.Container != "" {
		t.Errorf("facts of a plain machine: %+v", facts)
	}
	for _, r := range result[[]kernel.Requirement](t, m.must("requirements")) {
		if !r.OK && r.Code != "" {
			t.Errorf("requirement %q is not met on a plain machine: %s", r.Name, r.Found)
		}
	}
}

func TestLoadReplaceRemove(t *testing.T) {
	t.Parallel()
	m := boot(t, []lab.Module{v1, v2})
	original := m.cmdline()

	m.must("load", ko(v1.Name))
	m.must("wait", v1.Name, "60s")
	if got := m.cmdline(); got != patched1 {
		t.Fatalf("after loading: %q", got)
	}
	loaded := result[[]kernel.Patch](t, m.must("loaded"))
	want := []livepatch.Object{{Name: "vmlinux", Functions: []string{"cmdline_proc_show"}}}
	if len(loaded) != 1 || loaded[0].Name != v1.Name || !loaded[0].Enabled || loaded[0].Transition ||
		!slices.EqualFunc(loaded[0].Objects, want, func(a, b livepatch.Object) bool {
			return a.Name == b.Name && slices.Equal(a.Functions, b.Functions)
		}) {
		t.Errorf("loaded: %+v", loaded)
	}

	m.must("load", ko(v2.Name))
	m.must("wait", v2.Name, "60s")
	if got := m.cmdline(); got != patched2 {
		t.Fatalf("after replacing: %q", got)
	}
	left := result[[]string](t, m.must("leftovers"))
	if !slices.Equal(left, []string{v1.Name}) {
		t.Errorf("leftovers after replacing: %v", left)
	}
	m.must("remove", v1.Name)
	if mods := m.sh("cat /proc/modules"); strings.Contains(mods, v1.Name) {
		t.Errorf("replaced module is still there:\n%s", mods)
	}

	m.must("disable", v2.Name, "60s")
	if got := m.cmdline(); got != original {
		t.Errorf("after disabling: %q", got)
	}
	if mods := m.sh("cat /proc/modules"); strings.Contains(mods, "lkp_") {
		t.Errorf("disabled module is still there:\n%s", mods)
	}
	m.must("disable", v2.Name, "60s") // again, which is no error
}

func TestStuckTransitionNamesTheTaskAndIsReversed(t *testing.T) {
	t.Parallel()
	stuck := lab.Module{Source: "stuck", Name: "lkp_stuck"}
	m := boot(t, []lab.Module{stuck, v1})
	m.must("load", ko(stuck.Name))

	o := m.probe("wait", stuck.Name, "5s")
	if o.Code != livepatch.CodeStuck {
		t.Fatalf("waiting ended with %q: %s", o.Code, o.Error)
	}
	if !slices.ContainsFunc(o.Tasks, func(task kernel.Task) bool { return task.Comm == "kthreadd" }) {
		t.Errorf("kthreadd, which holds it up, is not among %v", o.Tasks)
	}
	if !strings.Contains(o.Error, "kthreadd") {
		t.Errorf("the message names nobody: %s", o.Error)
	}
	// While one transition goes on, the kernel begins no other.
	if o := m.probe("load", ko(v1.Name)); o.Error == "" {
		t.Error("a second patch was loaded during a transition")
	}

	m.must("reverse", stuck.Name, "60s")
	if list := m.sh("ls /sys/kernel/livepatch"); list != "" {
		t.Errorf("after reversing there is %q", list)
	}
	m.must("load", ko(v1.Name))
	m.must("wait", v1.Name, "60s")
}

func TestPatchOfAModule(t *testing.T) {
	t.Parallel()
	target := lab.Module{Source: "target", Name: "livepatch_target"}
	object := lab.Module{Source: "object", Name: "lkp_object"}
	m := boot(t, []lab.Module{target, object})
	// The patch may come before what it patches.
	m.must("load", ko(object.Name))
	m.must("wait", object.Name, "60s")
	m.sh("insmod " + ko(target.Name))
	if got := m.sh("cat /proc/livepatch_target"); got != "patched target" {
		t.Errorf("module loaded after its patch says %q", got)
	}
	m.must("disable", object.Name, "60s")
	if got := m.sh("cat /proc/livepatch_target"); got != "original target" {
		t.Errorf("after disabling it says %q", got)
	}
	m.must("load", ko(object.Name))
	m.must("wait", object.Name, "60s")
	if got := m.sh("cat /proc/livepatch_target"); got != "patched target" {
		t.Errorf("module loaded before its patch says %q", got)
	}
}

func TestModulesDisabled(t *testing.T) {
	t.Parallel()
	m := boot(t, []lab.Module{v1})
	original := m.cmdline()
	m.sh("echo 1 > /proc/sys/kernel/modules_disabled")
	if o := m.probe("requirements"); o.Code != livepatch.CodeUnsupported || !strings.Contains(o.Error, "modules_disabled") {
		t.Errorf("requirements: %q %s", o.Code, o.Error)
	}
	if o := m.probe("load", ko(v1.Name)); o.Error == "" {
		t.Error("a module was loaded though modules are disabled")
	}
	untouched(t, m, original)
}

func TestUnknownKeyWithSigEnforce(t *testing.T) {
	t.Parallel()
	signed := v1
	m := boot(t, []lab.Module{signed}, vm.KernelArg("module.sig_enforce=1"), vm.KernelArg("loglevel=4"))
	original := m.cmdline()
	if facts := result[kernel.Facts](t, m.must("inspect")); !facts.SigEnforce {
		t.Errorf("sig_enforce is not seen: %+v", facts)
	}
	if o := m.probe("load", ko(v1.Name)); o.Code != livepatch.CodeUntrustedKey {
		t.Errorf("unsigned module: %q %s", o.Code, o.Error)
	}
	m.put("/ko/signed.ko", signWithUnknownKey(t, m, v1))
	o := m.probe("load", "/ko/signed.ko")
	if o.Code != livepatch.CodeUntrustedKey {
		t.Errorf("module signed by an unknown key: %q %s", o.Code, o.Error)
	}
	untouched(t, m, original)
}

// signWithUnknownKey signs a module the way the kernel's build does, with a key
// made on the spot.
func signWithUnknownKey(t *testing.T, m *machine, mod lab.Module) []byte {
	t.Helper()
	dir := t.TempDir()
	key, cert, out := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "signed.ko")
	in := filepath.Join(dir, "in.ko")
	content, err := m.Get(t.Context(), ko(mod.Name))
	check(t, err)
	check(t, os.WriteFile(in, content, 0o644))
	for _, argv := range [][]string{
		{"openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=nobody knows this key", "-keyout", key, "-out", cert},
		{"/usr/lib/linux-kbuild-6.1/scripts/sign-file", "sha256", key, cert, in, out},
	} {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, msg)
		}
	}
	return read(t, out)
}

func (m *machine) put(path string, content []byte) {
	m.t.Helper()
	check(m.t, m.Put(m.t.Context(), path, 0o644, bytes.NewReader(content)))
}

// untouched fails when the kernel has, or had, anything of ours in it.
func untouched(t *testing.T, m *machine, original string) {
	t.Helper()
	if got := m.cmdline(); got != original {
		t.Errorf("the kernel was touched: /proc/cmdline is %q", got)
	}
	if list := m.sh("ls /sys/kernel/livepatch; grep lkp_ /proc/modules || true"); list != "" {
		t.Errorf("the kernel was touched: %s", list)
	}
}

func TestKernelRefusesWhatIsNoModuleOfItsOwn(t *testing.T) {
	t.Parallel()
	m := boot(t, []lab.Module{v1})
	original := m.cmdline()
	module, err := m.Get(t.Context(), ko(v1.Name))
	check(t, err)
	// The release itself the kernel does not compare where it compares symbol
	// versions (same_magic in kernel/module/version.c): that is left to the agent.
	magic := []byte("vermagic=" + lab.Release + " SMP")
	if !bytes.Contains(module, magic) {
		t.Fatal("the module has no vermagic where it was looked for")
	}
	for name, content := range map[string][]byte{
		"truncated": module[:len(module)/2],
		"empty":     {},
		"text":      []byte("this is no module\n"),
		"foreign":   bytes.Replace(module, magic, []byte("vermagic="+lab.Release+" UP "), 1),
	} {
		m.put("/ko/"+name+".ko", content)
		o := m.probe("load", "/ko/"+name+".ko")
		if o.Error == "" {
			t.Errorf("%s module was loaded", name)
		}
	}
	untouched(t, m, original)
}

func TestOopsLeavesEvidence(t *testing.T) {
	t.Parallel()
	oops := lab.Module{Source: "oops", Name: "lkp_oops"}
	m := boot(t, []lab.Module{oops})
	before := m.must("baseline")
	m.must("load", ko(oops.Name))
	m.must("wait", oops.Name, "60s")
	// The reader is killed; what code it ends with does not matter. Not cat: it
	// would have its standard output, our pipe, locked for splicing as it dies.
	_, err := m.Run(t.Context(), guest.Run{Argv: []string{"/bin/sh", "-c", "read line </proc/cmdline"}, Timeout: 10 * time.Second})
	check(t, err)
	e := result[kernel.Evidence](t, m.must("evidence", string(before.Result)))
	if e.Kind != livepatch.ReportOopsed {
		t.Errorf("an oops was taken for %q", e.Kind)
	}
	if !strings.Contains(e.Signature, "livepatch_cmdline_proc_show") {
		t.Errorf("signature %q does not name the function", e.Signature)
	}
	if e.Gained&kernel.TaintDied == 0 {
		t.Errorf("taint gained: %v", e.Gained)
	}
}

func TestPanicIsNoticedAndTheMachineComesBack(t *testing.T) {
	t.Parallel()
	deadly := lab.Module{Source: "panic", Name: "lkp_panic"}
	m := boot(t, []lab.Module{deadly})
	first := m.BootID()
	m.must("load", ko(deadly.Name))
	m.must("wait", deadly.Name, "60s")
	_, err := m.Run(t.Context(), guest.Run{Argv: []string{"/bin/cat", "/proc/cmdline"}, Timeout: time.Minute})
	if !errors.Is(err, vm.ErrRebooted) {
		t.Fatalf("reading /proc/cmdline ended with %v", err)
	}
	_, err = m.AwaitBoot(t.Context(), first, time.Minute)
	check(t, err)
	if m.Panics() != 1 || !strings.Contains(m.Console(), "a livepatch made for this ran") {
		t.Errorf("%d panics seen on the console", m.Panics())
	}
	if list := m.sh("ls /sys/kernel/livepatch"); list != "" {
		t.Errorf("after the reboot there is %q", list)
	}
}

func TestKernelThatDoesNotBootIsABootError(t *testing.T) {
	t.Parallel()
	l, err := lab.New(t.Logf)
	check(t, err)
	k, err := l.Kernel(t.Context(), lab.Release)
	check(t, err)
	_, err = vm.Start(t.Context(), vm.Config{Kernel: k.Image, Dir: t.TempDir(), Memory: 512})
	var bootErr *vm.BootError
	if !errors.As(err, &bootErr) {
		t.Fatalf("a kernel without any root: %v", err)
	}
	if !strings.Contains(bootErr.Console, "Unable to mount root fs") {
		t.Errorf("the console does not tell why:\n%s", bootErr.Console)
	}

	_, err = vm.Start(t.Context(), vm.Config{Kernel: "/nonexistent", Dir: t.TempDir()})
	var infraErr *vm.InfraError
	if !errors.As(err, &infraErr) {
		t.Errorf("a kernel that is not there is blamed on the kernel: %v", err)
	}
}
