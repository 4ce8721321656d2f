package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"livepatch/internal/vm"
)

// Kernel is a distribution's kernel, unpacked.
type Kernel struct {
	Release string
	// Dir is the unpacked package: boot, lib, usr.
	Dir string
	// Image is its bzImage.
	Image string
	// Modules is lib/modules/RELEASE.
	Modules string
}

// Kernel downloads the package of a release through apt, without installing it,
// and unpacks it.
func (l *Lab) Kernel(ctx context.Context, release string) (*Kernel, error) {
	dir, err := l.unpacked(ctx, "linux-image-"+release)
	if err != nil {
		return nil, err
	}
	return &Kernel{
		Release: release,
		Dir:     dir,
		Image:   filepath.Join(dir, "boot", "vmlinuz-"+release),
		Modules: filepath.Join(dir, "lib", "modules", release),
	}, nil
}

// unpacked returns the folder with the files of a Debian package in the version
// that apt would install.
func (l *Lab) unpacked(ctx context.Context, name string) (string, error) {
	return l.cached(name, nil, func(tmp string) error {
		down, err := os.MkdirTemp("", "livepatch-apt-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(down) //nolint:errcheck // a temporary folder
		// apt drops privileges to its own user, who must be able to write here.
		if err := os.Chmod(down, 0o777); err != nil {
			return err
		}
		if err := download(ctx, down, name); err != nil {
			return err
		}
		debs, err := filepath.Glob(filepath.Join(down, "*.deb"))
		if err != nil || len(debs) != 1 {
			return errors.Join(err, fmt.Errorf("apt-get download %s left %d packages", name, len(debs)))
		}
		_, err = run(ctx, "", nil, "dpkg-deb", "-x", debs[0], tmp)
		return err
	})
}

// download has apt fetch a package, NAME or NAME=VERSION, into dir.
func download(ctx context.Context, dir, spec string) error {
	if _, err := run(ctx, dir, nil, "apt-get", "download", "-q", spec); err == nil {
		return nil
	}
	// The lists of what there is may be missing, or older than the package.
	if _, err := run(ctx, dir, nil, "apt-get", "update", "-q"); err != nil {
		return err
	}
	_, err := run(ctx, dir, nil, "apt-get", "download", "-q", spec)
	return err
}

// bootModules are loaded by the initramfs, each after what it needs.
var bootModules = []string{
	"drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci_modern_dev",
	"drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci",
	"drivers/char/virtio_console", "drivers/char/hw_random/virtio-rng", "drivers/block/virtio_blk",
}

// Initramfs makes an initramfs for k with a guest, busybox and extra files, and
// returns its path.
func (l *Lab) Initramfs(ctx context.Context, k *Kernel, extra ...vm.File) (string, error) {
	files, err := l.baseFiles(ctx, k)
	if err != nil {
		return "", err
	}
	var archive bytes.Buffer
	if err := vm.WriteInitramfs(&archive, append(files, extra...)); err != nil {
		return "", err
	}
	return l.cached("initramfs-"+k.Release, []string{archive.String()}, func(tmp string) error {
		return os.WriteFile(tmp, archive.Bytes(), 0o644)
	})
}

func (l *Lab) baseFiles(ctx context.Context, k *Kernel) ([]vm.File, error) {
	guest, err := l.GoBuild(ctx, "./test/guest")
	if err != nil {
		return nil, err
	}
	sources := map[string]string{"/init": guest, "/bin/busybox": "/bin/busybox"}
	order := []string{"/init", "/bin/busybox"}
	for i, name := range bootModules {
		to := fmt.Sprintf("/modules/%02d-%s.ko", i, filepath.Base(name))
		sources[to] = filepath.Join(k.Modules, "kernel", name+".ko")
		order = append(order, to)
	}
	var files []vm.File
	for _, to := range order {
		content, err := os.ReadFile(sources[to])
		if err != nil {
			return nil, fmt.Errorf("make initramfs: %w", err)
		}
		files = append(files, vm.File{Path: to, Mode: 0o755, Content: content})
	}
	for _, applet := range strings.Fields("sh cat ls cp rm mkdir mount umount dmesg insmod rmmod modprobe lsmod sleep kill ps grep uname reboot ln touch true false sync id mknod chroot head tail test echo") {
		files = append(files, vm.File{Path: "/bin/" + applet, Mode: fs.ModeSymlink | 0o777, Content: []byte("busybox")})
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/etc", "/var/lib"} {
		files = append(files, vm.File{Path: dir, Mode: fs.ModeDir | 0o755})
	}
	return files, nil
}
