package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livepatch/internal/elfobj"
	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
	"livepatch/test/lab"
)

// load tries every built module in a virtual machine. A machine whose kernel warned
// or died is thrown away, so that one livepatch is not blamed for another.
func load(ctx context.Context, l *lab.Lab, fixes []*fix, log io.Writer) error {
	k, err := l.Kernel(ctx, lab.Release)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lpfix")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	t := &trial{lab: l, kernel: k, dir: dir}
	defer t.discard()
	for _, f := range fixes {
		if f.module == "" {
			continue
		}
		start := time.Now()
		f.loaded = t.run(ctx, f)
		fmt.Fprintf(log, "%s: loaded: %s (%.0f s)\n", f.file, f.loaded, time.Since(start).Seconds())
		if f.loaded != "yes" {
			t.discard()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// trial is one machine, booted when it is needed.
type trial struct {
	lab    *lab.Lab
	kernel *lab.Kernel
	dir    string
	vm     *vm.VM
}

func (t *trial) discard() {
	if t.vm != nil {
		t.vm.Stop()
		t.vm = nil
	}
}

func (t *trial) boot(ctx context.Context) error {
	initramfs, err := t.lab.Initramfs(ctx, t.kernel)
	if err != nil {
		return err
	}
	t.vm, err = vm.Start(ctx, vm.Config{
		Kernel: t.kernel.Image, Initramfs: initramfs, Dir: t.dir, Memory: 768, Accel: t.lab.Accel(ctx, t.kernel),
		Boot: []vm.BootOption{vm.KernelArg("quiet")},
	})
	return err
}

// run loads the livepatch before and after the modules that it patches, and returns
// "yes" or what went wrong.
func (t *trial) run(ctx context.Context, f *fix) string {
	if t.vm == nil {
		if err := t.boot(ctx); err != nil {
			return "no machine: " + err.Error()
		}
	}
	module, err := os.ReadFile(f.module)
	if err != nil {
		return err.Error()
	}
	if err := t.vm.Put(ctx, "/tmp/lp.ko", 0o644, strings.NewReader(string(module))); err != nil {
		return err.Error()
	}
	var targets []string
	for _, object := range f.report.Objects {
		if object == "vmlinux" {
			continue
		}
		order, err := t.dependencies(object, nil)
		if err != nil {
			return err.Error()
		}
		for _, path := range order {
			b, err := os.ReadFile(path)
			if err != nil {
				return err.Error()
			}
			to := "/tmp/" + filepath.Base(path)
			if err := t.vm.Put(ctx, to, 0o644, strings.NewReader(string(b))); err != nil {
				return err.Error()
			}
			targets = append(targets, to)
		}
	}
	name := strings.TrimSuffix(filepath.Base(f.module), ".ko")
	script := strings.NewReplacer("@NAME@", name, "@TARGETS@", strings.Join(targets, " "), "@OBJECTS@", strings.Join(f.report.Objects, " ")).Replace(guestScript)
	exit, err := t.vm.Run(ctx, guest.Run{Argv: []string{"/bin/sh", "-c", script}, Timeout: 3 * time.Minute})
	if err != nil {
		return "the kernel died: " + err.Error() + tail(t.vm.Console())
	}
	if exit.Code != 0 {
		return strings.TrimSpace(string(exit.Stdout) + string(exit.Stderr))
	}
	if err := t.reproduce(ctx, f, name); err != nil {
		return "the bug could not be shown: " + err.Error()
	}
	return "yes"
}

// reproducer is the bug that test/fixes/repro can provoke of the file, "" for none.
func reproducer(file string) string {
	file, _, _ = strings.Cut(file, " ")
	switch file {
	case "fs/proc/cmdline.c":
		return "special"
	case "drivers/net/ifb.c":
		return "ifb"
	case "drivers/comedi/drivers/comedi_test.c":
		return "comedi_test"
	case "net/vmw_vsock/af_vsock.c":
		return "vsock"
	}
	return ""
}

// reproduce provokes the fix's bug without the livepatch, with it, and without it
// again.
func (t *trial) reproduce(ctx context.Context, f *fix, name string) error {
	bug := reproducer(f.file)
	if bug == "" {
		return nil
	}
	program, err := t.lab.GoBuild(ctx, "./test/fixes/repro")
	if err != nil {
		return err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	if err := t.vm.Put(ctx, "/tmp/repro", 0o755, bytes.NewReader(content)); err != nil {
		return err
	}
	script := strings.NewReplacer("@NAME@", name, "@BUG@", bug).Replace(reproScript)
	exit, err := t.vm.Run(ctx, guest.Run{Argv: []string{"/bin/sh", "-c", script}, Timeout: time.Minute})
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(exit.Stdout)), "\n")
	if exit.Code != 0 || len(lines) != 3 {
		return fmt.Errorf("%s%s", exit.Stdout, exit.Stderr)
	}
	if lines[0] == lines[1] || lines[0] != lines[2] {
		return fmt.Errorf("without: %s; with: %s; without again: %s", lines[0], lines[1], lines[2])
	}
	f.shown = lines[0] + " → " + lines[1]
	return nil
}

const reproScript = `
set -e
/tmp/repro @BUG@
insmod /tmp/lp.ko
while [ "$(cat /sys/kernel/livepatch/@NAME@/transition)" = 1 ]; do sleep 0.1; done
/tmp/repro @BUG@
echo 0 > /sys/kernel/livepatch/@NAME@/enabled
while [ -e /sys/kernel/livepatch/@NAME@ ]; do sleep 0.1; done
/tmp/repro @BUG@
rmmod @NAME@
`

func tail(s string) string {
	const keep = 1500
	return s[max(0, len(s)-keep):]
}

// guestScript loads the livepatch with its targets absent, loads them, takes it off;
// then once more with the targets present. Any warning of the kernel is a failure.
const guestScript = `
fail() { echo "$1"; dmesg | tail -n 25; exit 1; }
settle() {
	i=0
	while [ "$(cat /sys/kernel/livepatch/@NAME@/transition 2>/dev/null)" = 1 ]; do
		i=$((i+1)); [ $i -gt 600 ] && fail "the transition did not end"; sleep 0.1
	done
}
off() {
	echo 0 > /sys/kernel/livepatch/@NAME@/enabled || fail "it could not be disabled"
	i=0
	while [ -e /sys/kernel/livepatch/@NAME@ ]; do
		i=$((i+1)); [ $i -gt 600 ] && fail "it did not go away after it was disabled"; sleep 0.1
	done
	i=0
	until rmmod @NAME@ 2>/dev/null; do
		i=$((i+1)); [ $i -gt 50 ] && fail "it could not be removed"; sleep 0.1
	done
}
on() { insmod /tmp/lp.ko || fail "the kernel refused it"; settle; }
patched() {
	for o in @OBJECTS@; do
		[ "$(cat /sys/kernel/livepatch/@NAME@/$o/patched)" = 1 ] || fail "$o is not patched"
	done
}
dmesg -c > /dev/null
on
missing=
for m in @TARGETS@; do
	n=$(echo ${m##*/} | busybox sed 's/\.ko$//; s/-/_/g')
	[ -e /sys/module/$n ] || insmod $m 2>/dev/null || missing="$missing $n"
done
[ -z "$missing" ] && patched
off
on
[ -z "$missing" ] && patched
off
dmesg | grep -E 'WARNING|BUG:|Oops|general protection|Call Trace|livepatch:.*(fail|error|invalid)' && fail "the kernel complained"
[ -z "$missing" ] || { echo "loaded and removed, but these modules do not load in this machine:$missing"; exit 2; }
exit 0
`

// dependencies lists the files of a module and of what it needs, that first.
func (t *trial) dependencies(name string, order []string) ([]string, error) {
	var path string
	err := filepath.WalkDir(t.kernel.Modules, func(p string, d os.DirEntry, err error) error {
		if err == nil && strings.ReplaceAll(strings.TrimSuffix(d.Name(), ".ko"), "-", "_") == name && strings.HasSuffix(p, ".ko") {
			path = p
			return filepath.SkipAll
		}
		return err
	})
	if err != nil || path == "" {
		return nil, errors.Join(err, fmt.Errorf("the kernel has no module %s", name))
	}
	for _, known := range order {
		if known == path {
			return order, nil
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f, err := elfobj.Parse(b)
	if err != nil {
		return nil, err
	}
	for _, need := range strings.Split(f.Modinfo().Get("depends"), ",") {
		if need != "" {
			if order, err = t.dependencies(strings.ReplaceAll(need, "-", "_"), order); err != nil {
				return nil, err
			}
		}
	}
	return append(order, path), nil
}
