package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// ModuleDir is where the initramfs keeps the modules that Main loads, in the
// order of their names.
const ModuleDir = "/modules"

// RootArg is the kernel command line option that names the block device to boot
// on from; without it the initramfs is all there is.
const RootArg = "livepatch.root="

// runCopy is where Main leaves itself for the system it boots on.
const runCopy = "/run/livepatch-guest"

// Main is the program. As process 1 it makes an initramfs a place to live in and
// either serves from there or, with RootArg, boots the system on that device,
// with itself as one of that system's services. As any other process it serves.
//
// It returns only on failure.
func Main() error {
	if os.Getpid() != 1 {
		return servePort()
	}
	if err := mountAll(); err != nil {
		return err
	}
	if err := loadModules(ModuleDir); err != nil {
		return err
	}
	if dev := argument(RootArg); dev != "" {
		return bootOn(dev)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") //nolint:errcheck // cannot fail
	return servePort()
}

// mountAll mounts what every program expects to find.
func mountAll() error {
	for _, m := range []struct{ kind, dir, data string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devtmpfs", "/dev", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"debugfs", "/sys/kernel/debug", ""},
		{"pstore", "/sys/fs/pstore", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil && !strings.HasPrefix(m.dir, "/sys/") {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
		err := syscall.Mount(m.kind, m.dir, m.kind, 0, m.data)
		if err != nil && !errors.Is(err, syscall.EBUSY) && !strings.HasPrefix(m.dir, "/sys/") {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

// loadModules loads every module in dir, in the order of names. A module that is
// there already is fine.
func loadModules(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	for _, path := range paths {
		image, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		params := []byte{0}
		// init_module(2) rather than finit_module(2): the frozen syscall package
		// has its number.
		_, _, errno := syscall.Syscall(syscall.SYS_INIT_MODULE, uintptr(unsafe.Pointer(&image[0])),
			uintptr(len(image)), uintptr(unsafe.Pointer(&params[0])))
		if errno != 0 && errno != syscall.EEXIST {
			return fmt.Errorf("load module %s: %w", filepath.Base(path), errno)
		}
	}
	return nil
}

// argument returns the value of an option of the kernel's command line.
func argument(prefix string) string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for word := range strings.FieldsSeq(string(line)) {
		if value, ok := strings.CutPrefix(word, prefix); ok {
			return value
		}
	}
	return ""
}

// bootOn mounts dev as the root and becomes its init. The unit that starts this
// program again there lives in /run, so the image on dev needs nothing of ours.
func bootOn(dev string) error {
	if err := waitFor(dev); err != nil {
		return err
	}
	const newRoot = "/newroot"
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return fmt.Errorf("boot on %s: %w", dev, err)
	}
	if err := syscall.Mount(dev, newRoot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	if err := leaveService(); err != nil {
		return fmt.Errorf("leave the guest service: %w", err)
	}
	for _, dir := range []string{"/sys/fs/pstore", "/sys/kernel/debug", "/tmp"} {
		syscall.Unmount(dir, 0) //nolint:errcheck // the next init mounts its own
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := syscall.Mount(dir, newRoot+dir, "", syscall.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return syscall.Exec("/sbin/init", []string{"/sbin/init"}, []string{"TERM=linux"})
}

// unit starts the guest as early as systemd can, and keeps it until the end: what
// happens before the network is up and while the system shuts down is of interest.
const unit = `[Unit]
Description=Commands from the host of this virtual machine
DefaultDependencies=no

[Service]
ExecStart=` + runCopy + `/guest
Restart=always
RestartSec=200ms
OOMScoreAdjust=-1000
KillMode=process
`

func leaveService() error {
	self, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	const wants = "/run/systemd/system/sysinit.target.wants"
	return errors.Join(
		os.MkdirAll(runCopy, 0o755),
		os.WriteFile(runCopy+"/guest", self, 0o755),
		os.MkdirAll(wants, 0o755),
		os.WriteFile("/run/systemd/system/livepatch-guest.service", []byte(unit), 0o644),
		os.Symlink("../livepatch-guest.service", wants+"/livepatch-guest.service"),
	)
}

// waitFor waits until path exists, at most ten seconds.
func waitFor(path string) error {
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s does not appear", path)
}

// findPort returns the device of the port named PortName. Without udev there are
// no names in /dev/virtio-ports, but sysfs always tells.
func findPort() (string, error) {
	for range 1000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", fmt.Errorf("find port: %w", err)
		}
		for _, path := range names {
			name, err := os.ReadFile(path)
			dev := "/dev/" + filepath.Base(filepath.Dir(path))
			if err == nil && strings.TrimSpace(string(name)) == PortName {
				return dev, waitFor(dev)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", errors.New("this machine has no port " + PortName)
}

func servePort() error {
	dev, err := findPort()
	if err != nil {
		return err
	}
	// Blocking: the poller's edge-triggered epoll would miss the host's
	// connecting, and nothing else runs here that a blocked thread could hurt.
	fd, err := syscall.Open(dev, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dev, err)
	}
	port := &portFile{fd: fd}
	return Serve(port, hello())
}

// portFile reads and writes a descriptor without the runtime's poller.
type portFile struct{ fd int }

func (p *portFile) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(p.fd, b)
		switch {
		case err == nil && n > 0:
			return n, nil
		case err == nil, errors.Is(err, syscall.EAGAIN):
			// Nobody is connected on the other side (virtio_console answers 0).
			time.Sleep(20 * time.Millisecond)
		case !errors.Is(err, syscall.EINTR):
			return 0, err
		}
	}
}

func (p *portFile) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := syscall.Write(p.fd, b[done:])
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return done, err
		}
		done += max(n, 0)
	}
	return done, nil
}

func hello() Hello {
	h := Hello{}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h.BootID = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h.Release = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/uptime"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		if s, err := strconv.ParseFloat(first, 64); err == nil {
			h.Uptime = time.Duration(s * float64(time.Second))
		}
	}
	return h
}

// loopbackUp brings the loopback interface up: SIOCSIFFLAGS of netdevice(7).
func loopbackUp() error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer syscall.Close(fd) //nolint:errcheck // nothing was written
	// struct ifreq: a name of 16 bytes, then a union that begins with the flags.
	var ifreq [40]byte
	copy(ifreq[:16], "lo")
	ifreq[16] = syscall.IFF_UP | syscall.IFF_RUNNING&0xff
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&ifreq[0])))
	if errno != 0 {
		return fmt.Errorf("loopback: %w", errno)
	}
	return nil
}
