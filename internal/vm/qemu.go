package vm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"livepatch/internal/vm/guest"
)

// CPUs is a number of virtual processors.
type CPUs int

// MiB is a size in mebibytes.
type MiB int

// Device is a part of the machine: it gives QEMU's arguments for itself.
type Device interface{ args() []string }

// Disk is a virtio block device; the first one is /dev/vda.
type Disk struct {
	// Path of the image, in Format "raw" or "qcow2".
	Path, Format string
	// ReadOnly refuses writes. Otherwise they go to Path, without waiting for
	// the host's disk: a crash of the guest loses nothing, one of the host may.
	ReadOnly bool
}

func (d Disk) args() []string {
	readonly := "off"
	if d.ReadOnly {
		readonly = "on"
	}
	return []string{"-drive", fmt.Sprintf("if=virtio,format=%s,cache=unsafe,discard=unmap,readonly=%s,file=%s",
		d.Format, readonly, commas(d.Path))}
}

// UserNet is a network card behind QEMU's own NAT. From the host's side it reaches
// the loopback interface only, as HostAddr.
type UserNet struct{}

func (UserNet) args() []string {
	return []string{"-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="}
}

// messagePort is the virtio serial port that the guest's messages travel on.
type messagePort struct{ socket string }

func (p messagePort) args() []string {
	return []string{
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=messages,path=" + commas(p.socket),
		"-device", "virtserialport,chardev=messages,name=" + guest.PortName,
	}
}

// randomness spares the guest waiting for entropy.
type randomness struct{}

func (randomness) args() []string {
	return []string{"-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"}
}

// serialConsole sends the first serial line to QEMU's standard output.
type serialConsole struct{}

func (serialConsole) args() []string { return []string{"-serial", "stdio"} }

// BootOption is a part of the kernel's command line.
type BootOption interface{ kernelArgs() []string }

// KernelArg is an option as the kernel's documentation names it.
type KernelArg string

func (a KernelArg) kernelArgs() []string { return []string{string(a)} }

// RebootOnPanic reboots the machine so long after a panic, rounded to seconds, at
// least one. Without it a panicked machine stands still.
type RebootOnPanic time.Duration

func (p RebootOnPanic) kernelArgs() []string {
	return []string{fmt.Sprintf("panic=%d", max(1, int(time.Duration(p).Seconds())))}
}

// RootDevice makes the guest boot the system on a device, such as /dev/vda.
type RootDevice string

func (r RootDevice) kernelArgs() []string { return []string{guest.RootArg + string(r)} }

// SerialLog sends kernel messages to the console that package vm keeps. Every
// machine has it.
type serialLog struct{}

func (serialLog) kernelArgs() []string { return []string{"console=ttyS0"} }

// commandLine is QEMU's, for a Config with its defaults filled in.
func commandLine(cfg Config, socket string) []string {
	args := []string{
		"-name", cfg.Name,
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc",
		"-smp", strconv.Itoa(int(cfg.CPUs)),
		"-m", strconv.Itoa(int(cfg.Memory)),
		"-kernel", cfg.Kernel,
	}
	args = append(args, cfg.Accel.args()...)
	if cfg.Initramfs != "" {
		args = append(args, "-initrd", cfg.Initramfs)
	}
	devices := append([]Device{serialConsole{}, messagePort{socket}, randomness{}}, cfg.Devices...)
	for _, d := range devices {
		args = append(args, d.args()...)
	}
	var line []string
	for _, o := range append([]BootOption{serialLog{}}, cfg.Boot...) {
		line = append(line, o.kernelArgs()...)
	}
	return append(args, "-append", strings.Join(line, " "))
}

// commas doubles the commas of a value: QEMU's escape in option lists.
func commas(s string) string { return strings.ReplaceAll(s, ",", ",,") }
