// Package kerneltest is a kernel for tests: a folder that looks like /proc, /sys,
// /dev and /etc of a machine that can be livepatched, and a kernel.Loader that
// behaves like Linux, or misbehaves on order.
//
// It keeps the kernel's rules, so that a test fails where a real machine would:
// one transition at a time, no second module of a name, vermagic and signatures
// checked, replaced patches gone but their modules still loaded. Time passes by
// package time, so that testing/synctest can make it pass at once.
package kerneltest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// Kernel is a fake kernel. It implements kernel.Loader.
type Kernel struct {
	// Root is the folder; kernel.Open(k.Root, k) sees the machine in it.
	Root string

	tb      testing.TB
	mu      sync.Mutex
	stopped bool
	boots   int
	seq     uint64
	release string
	calls   []string
	patches []*patch
	modules []Module
	busy    map[string]int
	faults  faults
}

// faults is what goes wrong.
type faults struct {
	errno      syscall.Errno
	log        []string
	transition time.Duration
	stuckIn    []kernel.Task
	stuckOut   []kernel.Task
	before     func(Module)
	after      func(Module)
}

type patch struct {
	Module
	enabled, transition bool
	// turn counts the transition's reversals, so that the end of one that was
	// turned round does nothing.
	turn int
}

// Running is the kernel that a new fake says it is: Debian's cloud kernel, with
// the build id that it really has.
func Running() livepatch.Kernel {
	return livepatch.Kernel{
		Release: "6.1.0-47-cloud-amd64",
		Version: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)",
		Arch:    "amd64",
		BuildID: "4f61d8f6405b1c6eed15a7a3e2e27067394202d3",
	}
}

// New makes a freshly booted machine that runs Running and can be livepatched.
// Transitions end at once.
func New(tb testing.TB) *Kernel {
	tb.Helper()
	k := &Kernel{Root: tb.TempDir(), tb: tb, busy: map[string]int{}}
	tb.Cleanup(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.stopped = true
	})
	k.mu.Lock()
	defer k.mu.Unlock()
	k.boot()
	k.identity(Running())
	return k
}

// System is the machine as the code under test sees it.
func (k *Kernel) System() *kernel.System { return kernel.Open(k.Root, k) }

// Refuse makes the next loads fail with errno after logging the lines; 0 ends it.
func (k *Kernel) Refuse(errno syscall.Errno, log ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.errno, k.faults.log = errno, log
}

// TransitionTime is how long transitions take from now on.
func (k *Kernel) TransitionTime(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.transition = d
}

// HoldApply makes transitions to a patch never end, because these tasks hold them
// up; without tasks they end again, the held ones at once. Reversing one ends as
// usual.
func (k *Kernel) HoldApply(tasks ...kernel.Task) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.stuckIn = tasks
	k.letGo(true, len(tasks))
}

// letGo ends the held transitions of one direction when no task holds them up.
func (k *Kernel) letGo(applying bool, tasks int) {
	for _, p := range slices.Clone(k.patches) {
		if tasks == 0 && p.transition && p.enabled == applying && k.faults.transition == 0 {
			k.finish(p)
		}
	}
}

// HoldRemove is HoldApply for transitions away from a patch.
func (k *Kernel) HoldRemove(tasks ...kernel.Task) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.stuckOut = tasks
	k.letGo(false, len(tasks))
}

// Busy makes the next n attempts to remove the module find it in use.
func (k *Kernel) Busy(name string, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy[name] = n
}

// BeforeLoad and AfterLoad call f at a load that the kernel accepts, before
// anything of it can be seen and when it has returned to nobody yet: the places
// to crash at, for example by runtime.Goexit and a Crash. nil ends it.
func (k *Kernel) BeforeLoad(f func(Module)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.before = f
}

// AfterLoad is described at BeforeLoad.
func (k *Kernel) AfterLoad(f func(Module)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faults.after = f
}

// Calls are the calls that would have changed the kernel, oldest first: "load
// NAME", "disable NAME", "enable NAME", "unload NAME", refused ones included. A
// load of something that is no module has the file's name.
func (k *Kernel) Calls() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.calls)
}

// Load implements kernel.Loader.
func (k *Kernel) Load(f *os.File, _ string) error {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, livepatch.MaxModuleSize))
	if err != nil {
		return err
	}
	m, isModule := ReadModule(b)
	if !isModule {
		m.Name = filepath.Base(f.Name())
	}
	k.mu.Lock()
	k.calls = append(k.calls, "load "+m.Name)
	err = k.admit(m, isModule)
	before, after := k.faults.before, k.faults.after
	k.mu.Unlock()
	if err != nil {
		return fmt.Errorf("finit_module: %w", err)
	}
	// Outside the lock, because the crash points use the kernel themselves.
	if before != nil {
		before(m)
	}
	k.mu.Lock()
	k.insert(m)
	k.mu.Unlock()
	if after != nil {
		after(m)
	}
	return nil
}

// admit checks what Linux checks, in its order (finit_module, load_module,
// klp_enable_patch).
func (k *Kernel) admit(m Module, isModule bool) error {
	enforced := strings.TrimSpace(k.get("sys/module/module/parameters/sig_enforce")) == "Y"
	release, _, _ := strings.Cut(m.VerMagic, " ")
	switch {
	case k.faults.errno != 0:
		k.log(3, k.faults.log...)
		return k.faults.errno
	case strings.TrimSpace(k.get("proc/sys/kernel/modules_disabled")) == "1":
		return syscall.EPERM
	case enforced && !m.Signed:
		k.log(5, "Loading of unsigned module is rejected")
		return syscall.EKEYREJECTED
	case !isModule:
		return syscall.ENOEXEC
	case release != k.release:
		k.log(3, fmt.Sprintf("%s: version magic '%s' should be '%s SMP preempt mod_unload modversions '", m.Name, m.VerMagic, k.release))
		return syscall.ENOEXEC
	case k.loaded(m.Name):
		return syscall.EEXIST
	case m.Livepatch && slices.ContainsFunc(k.patches, func(p *patch) bool { return p.transition }):
		return syscall.EBUSY
	}
	return nil
}

func (k *Kernel) loaded(name string) bool {
	return slices.ContainsFunc(k.modules, func(m Module) bool { return m.Name == name })
}

// insert makes the module loaded and begins its transition.
func (k *Kernel) insert(m Module) {
	k.modules = append(k.modules, m)
	k.put(filepath.Join("sys/module", m.Name, "initstate"), "live\n")
	k.writeModules()
	taint := k.taint() | kernel.TaintOutOfTree
	if !m.Signed {
		taint |= kernel.TaintUnsigned
	}
	if !m.Livepatch {
		k.setTaint(taint)
		return
	}
	k.setTaint(taint | kernel.TaintLivepatch)
	p := &patch{Module: m, enabled: true}
	k.patches = append(k.patches, p)
	k.log(5, fmt.Sprintf("livepatch: enabling patch '%s'", m.Name))
	k.begin(p)
}

// begin starts a transition of p to its enabled state, and lets it end.
func (k *Kernel) begin(p *patch) {
	p.transition = true
	p.turn++
	k.show(p)
	held := k.faults.stuckOut
	if p.enabled {
		held = k.faults.stuckIn
	}
	k.writeTasks(held, p.enabled)
	switch {
	case len(held) > 0:
	case k.faults.transition == 0:
		k.finish(p)
	default:
		turn := p.turn
		time.AfterFunc(k.faults.transition, func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			if p.turn == turn && !k.stopped && slices.Contains(k.patches, p) {
				k.finish(p)
			}
		})
	}
}

// finish ends a transition: an applied patch that replaces takes the others away,
// a disabled one goes itself (klp_complete_transition, klp_try_complete_transition).
// The modules stay until they are removed.
func (k *Kernel) finish(p *patch) {
	p.transition = false
	k.writeTasks(nil, p.enabled)
	switch {
	case !p.enabled:
		k.log(5, fmt.Sprintf("livepatch: '%s': unpatching complete", p.Name))
		k.drop(func(q *patch) bool { return q == p })
		return
	case !p.Stacked:
		k.drop(func(q *patch) bool { return q != p })
	}
	k.log(5, fmt.Sprintf("livepatch: '%s': patching complete", p.Name))
	k.show(p)
}

// drop removes patches from sight.
func (k *Kernel) drop(which func(*patch) bool) {
	for _, p := range k.patches {
		if which(p) {
			k.remove(filepath.Join("sys/kernel/livepatch", p.Name))
		}
	}
	k.patches = slices.DeleteFunc(k.patches, which)
}

// SetEnabled implements kernel.Loader (enabled_store).
func (k *Kernel) SetEnabled(path string, on bool) error {
	name := filepath.Base(filepath.Dir(path))
	k.mu.Lock()
	defer k.mu.Unlock()
	verb := "disable "
	if on {
		verb = "enable "
	}
	k.calls = append(k.calls, verb+name)
	i := slices.IndexFunc(k.patches, func(p *patch) bool { return p.Name == name })
	switch {
	case i < 0:
		return &os.PathError{Op: "write", Path: path, Err: syscall.ENOENT}
	case k.patches[i].enabled == on:
		return &os.PathError{Op: "write", Path: path, Err: syscall.EINVAL}
	}
	p := k.patches[i]
	switch {
	case p.transition:
	case slices.ContainsFunc(k.patches, func(p *patch) bool { return p.transition }):
		return &os.PathError{Op: "write", Path: path, Err: syscall.EBUSY}
	case on: // a disabled patch cannot be enabled again
		return &os.PathError{Op: "write", Path: path, Err: syscall.EINVAL}
	}
	p.enabled = on
	k.begin(p)
	return nil
}

// Unload implements kernel.Loader (delete_module).
func (k *Kernel) Unload(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, "unload "+name)
	switch {
	case strings.TrimSpace(k.get("proc/sys/kernel/modules_disabled")) == "1":
		return fmt.Errorf("delete_module: %w", syscall.EPERM)
	case !k.loaded(name):
		return fmt.Errorf("delete_module: %w", syscall.ENOENT)
	case slices.ContainsFunc(k.patches, func(p *patch) bool { return p.Name == name }):
		return fmt.Errorf("delete_module: %w", syscall.EAGAIN)
	case k.busy[name] > 0:
		k.busy[name]--
		return fmt.Errorf("delete_module: %w", syscall.EAGAIN)
	}
	k.modules = slices.DeleteFunc(k.modules, func(m Module) bool { return m.Name == name })
	k.remove(filepath.Join("sys/module", name))
	k.writeModules()
	return nil
}
