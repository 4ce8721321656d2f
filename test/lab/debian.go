package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"livepatch/internal/vm"
	"livepatch/internal/vm/guest"
)

// debianPackages are what the image has beyond Debian's minimum: systemd and what a
// server has anyway.
const debianPackages = "systemd,systemd-sysv,udev,dbus,iproute2,ca-certificates,kmod,procps,adduser"

// debianFiles make the bare system one that boots unattended.
var debianFiles = map[string]string{
	"etc/hostname": "debian\n",
	"etc/hosts":    "127.0.0.1 localhost\n127.0.1.1 debian\n10.0.2.2 livepatch.test other.test\n",
	// No name is asked for outside of this file.
	"etc/resolv.conf": "",
	// Exists but is empty: every machine gets its own, and it is no first boot.
	"etc/machine-id": "",
	"etc/fstab":      "",
	// QEMU's user network always has these addresses; asking DHCP takes longer.
	"etc/systemd/network/eth.network":          "[Match]\nName=eth0\n\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
	"etc/systemd/journald.conf.d/console.conf": "[Journal]\nForwardToConsole=no\nSyncIntervalSec=5s\n",
	// A unit that does not stop must not hold up a reboot for a minute and a half.
	"etc/systemd/system.conf.d/timeouts.conf": "[Manager]\nDefaultTimeoutStopSec=20s\n",
}

// debianMasked are units that only cost time in a machine that lives for minutes
// and has no terminal.
var debianMasked = []string{
	"getty@tty1.service", "serial-getty@ttyS0.service", "console-getty.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
	"fstrim.timer", "systemd-tmpfiles-clean.timer", "systemd-pstore.service",
	"systemd-network-generator.service", "systemd-binfmt.service",
	"modprobe@drm.service", "modprobe@fuse.service", "modprobe@efi_pstore.service", "modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@loop.service",
	"dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
	"sys-fs-fuse-connections.mount", "sys-kernel-config.mount",
}

// debianScript finishes the tree in $1: modules' index, units, and no weight that
// nobody reads.
const debianScript = `set -e
root=$1
release=$2
shift 2
depmod -b "$root" "$release"
for unit in "$@"; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/etc/systemd/system/network-online.target.wants"
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
ln -sf /lib/systemd/system/systemd-networkd-wait-online.service "$root/etc/systemd/system/network-online.target.wants/"
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/locale/* "$root"/usr/share/man/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
`

// Debian makes a raw ext4 image of a Debian 12 with systemd and the modules of k,
// and returns its path. It takes about a minute, once.
func (l *Lab) Debian(ctx context.Context, k *Kernel) (string, error) {
	var parts []string
	for _, name := range sortedKeys(debianFiles) {
		parts = append(parts, name, debianFiles[name])
	}
	parts = append(parts, debianPackages, debianScript, k.Release)
	parts = append(parts, debianMasked...)
	return l.cached("debian-12.ext4", parts, func(tmp string) error {
		root, err := os.MkdirTemp("", "livepatch-debian-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(root) //nolint:errcheck // a temporary folder
		if err := os.Chmod(root, 0o755); err != nil {
			return err
		}
		args := append([]string{"mmdebstrap", "--variant=minbase", "--include=" + debianPackages, "--skip=check/empty"},
			aptSources(root)...)
		if _, err := run(ctx, "", nil, args...); err != nil {
			return err
		}
		if err := finishDebian(ctx, root, k); err != nil {
			return err
		}
		// -d fills the file system without mounting it.
		_, err = run(ctx, "", nil, "mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root,
			"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", tmp, "3G")
		return err
	})
}

// aptSources are mmdebstrap's arguments for what and where from: the distribution
// as this host knows it, else as mmdebstrap does.
func aptSources(root string) []string {
	for _, path := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		if content, err := os.ReadFile(path); err == nil && strings.Contains(string(content), "bookworm") {
			return []string{"", root, path}
		}
	}
	return []string{"bookworm", root}
}

func finishDebian(ctx context.Context, root string, k *Kernel) error {
	for name, content := range debianFiles {
		path := filepath.Join(root, name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644))
		if err != nil {
			return err
		}
	}
	// What the kernel's package would have installed, without its boot loader
	// and initramfs hooks.
	for _, dir := range []string{"boot", "lib"} {
		target := filepath.Join(root, map[string]string{"boot": "boot", "lib": "usr/lib"}[dir])
		if _, err := run(ctx, "", nil, "cp", "-a", filepath.Join(k.Dir, dir)+"/.", target); err != nil {
			return err
		}
	}
	argv := append([]string{"sh", "-c", debianScript, "finish", root, k.Release}, debianMasked...)
	_, err := run(ctx, "", nil, argv...)
	return err
}

// Host is a virtual machine with Debian on it.
type Host struct {
	*vm.VM
	// Disk is the image with what this machine wrote.
	Disk string
}

// StartDebian boots a fresh copy of the Debian image, in dir. It returns as soon as
// commands can be run; AwaitSystem waits for the end of the boot.
func (l *Lab) StartDebian(ctx context.Context, k *Kernel, dir, name string, boot ...vm.BootOption) (*Host, error) {
	base, err := l.Debian(ctx, k)
	if err != nil {
		return nil, err
	}
	initramfs, err := l.Initramfs(ctx, k)
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(dir, name+".qcow2")
	if _, err := run(ctx, "", nil, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, disk); err != nil {
		return nil, err
	}
	id := make([]byte, 16)
	rand.Read(id) //nolint:errcheck // cannot fail
	machine, err := vm.Start(ctx, vm.Config{
		Name: name, Dir: dir, Accel: l.Accel(ctx, k), Memory: 1024,
		Kernel: k.Image, Initramfs: initramfs,
		Devices: []vm.Device{vm.Disk{Path: disk, Format: "qcow2"}, vm.UserNet{}},
		Boot: append([]vm.BootOption{
			vm.RootDevice("/dev/vda"), vm.RebootOnPanic(time.Second),
			vm.KernelArg("net.ifnames=0"), vm.KernelArg("quiet"), vm.KernelArg("systemd.show_status=no"),
			vm.KernelArg("systemd.machine_id=" + hex.EncodeToString(id)),
		}, boot...),
	})
	if err != nil {
		return nil, err
	}
	return &Host{VM: machine, Disk: disk}, nil
}

// AwaitSystem waits until systemd has started everything, and returns its word for
// how that went: "running" or "degraded".
func (h *Host) AwaitSystem(ctx context.Context) (string, error) {
	exit, err := h.Run(ctx, guest.Run{
		Argv:    []string{"systemctl", "is-system-running", "--wait"},
		Timeout: 3 * time.Minute,
	})
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(exit.Stdout)), nil
}

// Shell runs a line of shell and returns both outputs together. An exit code other
// than zero is an error.
func (h *Host) Shell(ctx context.Context, line string) (string, error) {
	exit, err := h.Run(ctx, guest.Run{Argv: []string{"/bin/sh", "-c", line + "\n"}, Timeout: 2 * time.Minute})
	if err != nil {
		return "", err
	}
	out := string(exit.Stdout) + string(exit.Stderr)
	if exit.Code != 0 || exit.TimedOut {
		return out, fmt.Errorf("%q in the guest ended with code %d:\n%s", line, exit.Code, out)
	}
	return out, nil
}

// Reboot reboots as a person would and waits until the next boot answers.
func (h *Host) Reboot(ctx context.Context) error {
	before := h.BootID()
	_, err := h.Run(ctx, guest.Run{Argv: []string{"systemctl", "reboot"}})
	if err != nil && !errors.Is(err, vm.ErrRebooted) {
		return err
	}
	_, err = h.AwaitBoot(ctx, before, 3*time.Minute)
	return err
}

// CopyIn copies a file of this host into the guest.
func (h *Host) CopyIn(ctx context.Context, from, to string, mode uint32) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy into guest: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	return h.Put(ctx, to, mode, f)
}

// Await asks again and again until ask says yes, at most timeout. What ask saw last
// is part of the error. A machine that reboots meanwhile is asked again.
func Await(ctx context.Context, what string, timeout time.Duration, ask func() (seen string, yes bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		seen, yes, err := ask()
		if yes && err == nil {
			return nil
		}
		if err != nil {
			seen += " (" + err.Error() + ")"
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s; seen last: %s", timeout, what, seen)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Install copies a Debian package in and installs it.
func (h *Host) Install(ctx context.Context, deb string) (string, error) {
	to := "/root/" + filepath.Base(deb)
	if err := h.CopyIn(ctx, deb, to, 0o644); err != nil {
		return "", err
	}
	return h.Shell(ctx, "dpkg -i "+to)
}

// BeforeNetwork tells, of the boot that runs, when the daemon had applied what it
// had cached and when the network began to be set up, since the kernel's start.
func (h *Host) BeforeNetwork(ctx context.Context) (applied, network time.Duration, err error) {
	out, err := h.Shell(ctx, "systemctl show -P ActiveEnterTimestampMonotonic livepatchd.service; systemctl show -P InactiveExitTimestampMonotonic systemd-networkd.service")
	if err != nil {
		return 0, 0, err
	}
	var a, n int64
	if _, err := fmt.Sscan(out, &a, &n); err != nil || a == 0 || n == 0 {
		return 0, 0, fmt.Errorf("systemd does not tell when the units started: %q", out)
	}
	return time.Duration(a) * time.Microsecond, time.Duration(n) * time.Microsecond, nil
}
