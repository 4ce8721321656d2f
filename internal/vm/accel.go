package vm

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Accel is how a machine's instructions are run.
type Accel string

// The ways.
const (
	// Emulated translates instructions in software; works everywhere.
	Emulated Accel = "tcg"
	// KVM lets the host's processor run them.
	KVM Accel = "kvm"
)

func (a Accel) args() []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	// Five-level page tables and a second KVM inside only cost time here.
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max,la57=off,svm=off"}
}

// Prober finds out once which Accel works here.
type Prober struct {
	// QEMU is the program; "qemu-system-x86_64" when empty.
	QEMU string
	// Kernel is the image that is tried.
	Kernel string
	// Patience is how long the kernel may take to say its first words with KVM;
	// four seconds when zero. Where KVM works it takes well under one.
	Patience time.Duration

	once  sync.Once
	found Accel
}

// Accel tries KVM by booting a kernel with it: the device being there and opening
// says little, least of all inside another virtual machine, where guests are seen
// to start and then hang. The answer is kept.
func (p *Prober) Accel(ctx context.Context) Accel {
	p.once.Do(func() {
		p.found = Emulated
		if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
			f.Close() //nolint:errcheck // was only tried
			if p.boots(ctx) {
				p.found = KVM
			}
		}
	})
	return p.found
}

// boots tells whether a kernel gets as far as panicking for want of a root file
// system.
func (p *Prober) boots(ctx context.Context) bool {
	patience := p.Patience
	if patience == 0 {
		patience = 4 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cfg := withDefaults(Config{QEMU: p.QEMU})
	args := append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc", "-m", "512",
		"-serial", "stdio", "-no-reboot", "-kernel", p.Kernel, "-append", "console=ttyS0 panic=-1",
	}, KVM.args()...)
	cmd := exec.CommandContext(ctx, cfg.QEMU, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return err == nil && strings.Contains(string(out), panicMark)
}
