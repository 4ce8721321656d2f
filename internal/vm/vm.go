// Package vm boots kernels in QEMU, runs commands in them and keeps their console.
//
// It tells two kinds of failure apart: a BootError is the fault of the kernel or
// the system in the machine (it hung, it panicked), an InfraError is ours (no
// QEMU, no disk space). Both keep the console.
//
// A machine that reboots stays the same QEMU and the same VM value; AwaitBoot tells
// when the next boot answers. Nothing is contacted but what the host offers on its
// own loopback interface, which the guest sees as HostAddr.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"livepatch/internal/vm/guest"
)

// HostAddr is the host's loopback interface as the guest reaches it over UserNet.
const HostAddr = "10.0.2.2"

// Config describes a machine.
type Config struct {
	// Name is used in errors and file names; "vm" when empty.
	Name string
	// QEMU is the program; "qemu-system-x86_64" when empty.
	QEMU string
	// Accel is how instructions are run; see Prober. Emulated when empty.
	Accel Accel
	// CPUs is 2 when zero, Memory 1024 MiB.
	CPUs   CPUs
	Memory MiB
	// Kernel is the path of a bootable image (bzImage); Initramfs of its cpio
	// archive, which must have a guest as its init.
	Kernel, Initramfs string
	// Boot options make the kernel's command line.
	Boot []BootOption
	// Devices beyond the console, the message port and the random number
	// generator that every machine has.
	Devices []Device
	// Dir is an existing folder for sockets and the console's log. Its path must
	// be short enough for a socket in it (108 bytes in all).
	Dir string
	// BootTimeout bounds the time from start to the guest's hello; two minutes
	// when zero.
	BootTimeout time.Duration
}

// VM is a running machine. Its methods may be called side by side.
type VM struct {
	cfg     Config
	cmd     *exec.Cmd
	console *console
	client  *client
	exited  chan struct{} // closed when QEMU has ended
	stop    sync.Once
}

// Start boots a machine and returns when its guest has said hello. Cancelling ctx
// ends the machine, also later. Errors are *BootError and *InfraError.
func Start(ctx context.Context, cfg Config) (*VM, error) {
	cfg = withDefaults(cfg)
	m := &VM{cfg: cfg, exited: make(chan struct{})}
	listener, err := m.launch(ctx)
	if err != nil {
		return nil, &InfraError{Op: "start " + cfg.Name, Err: err}
	}
	defer listener.Close() //nolint:errcheck // QEMU has connected or never will

	port, err := acceptFrom(ctx, listener, m.exited)
	if err != nil {
		m.Stop()
		return nil, &InfraError{Op: "connect to " + cfg.Name, Err: err, Console: m.Console()}
	}
	m.client = newClient(port)
	if _, err := m.awaitHello(ctx, "", cfg.BootTimeout, true); err != nil {
		m.Stop()
		return nil, err
	}
	return m, nil
}

func withDefaults(cfg Config) Config {
	if cfg.Name == "" {
		cfg.Name = "vm"
	}
	if cfg.QEMU == "" {
		cfg.QEMU = "qemu-system-x86_64"
	}
	if cfg.Accel == "" {
		cfg.Accel = Emulated
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1024
	}
	if cfg.BootTimeout == 0 {
		cfg.BootTimeout = 2 * time.Minute
	}
	return cfg
}

// launch starts QEMU, whose message port connects to the returned listener.
func (m *VM) launch(ctx context.Context) (net.Listener, error) {
	socket := filepath.Join(m.cfg.Dir, m.cfg.Name+".sock")
	os.Remove(socket) //nolint:errcheck // usually is not there
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("message port: %w", err)
	}
	m.console, err = newConsole(filepath.Join(m.cfg.Dir, m.cfg.Name+".console"))
	if err != nil {
		listener.Close() //nolint:errcheck // the first error is the one that counts
		return nil, err
	}
	m.cmd = exec.CommandContext(ctx, m.cfg.QEMU, commandLine(m.cfg, socket)...)
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	// The machine does not outlive us, even when we are killed.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	m.cmd.WaitDelay = 5 * time.Second
	if err := m.cmd.Start(); err != nil {
		listener.Close() //nolint:errcheck // the first error is the one that counts
		m.console.close()
		return nil, err
	}
	go func() {
		m.cmd.Wait() //nolint:errcheck // how it ended is seen on the console
		m.console.close()
		close(m.exited)
	}()
	return listener, nil
}

// acceptFrom waits for QEMU's connection, at most until QEMU ends or ten seconds.
func acceptFrom(ctx context.Context, l net.Listener, exited <-chan struct{}) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	type accepted struct {
		conn net.Conn
		err  error
	}
	got := make(chan accepted, 1)
	go func() {
		conn, err := l.Accept()
		got <- accepted{conn, err}
	}()
	select {
	case a := <-got:
		return a.conn, a.err
	case <-exited:
		return nil, errors.New("QEMU ended at once")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// BootID is the id of the boot that said hello last.
func (m *VM) BootID() string { return m.client.lastHello().BootID }

// AwaitBoot waits until a boot other than the one with id previous has said hello,
// at most timeout. It is for reboots: panics on the way are no error as long as
// the machine comes back.
func (m *VM) AwaitBoot(ctx context.Context, previous string, timeout time.Duration) (guest.Hello, error) {
	return m.awaitHello(ctx, previous, timeout, false)
}

func (m *VM) awaitHello(ctx context.Context, previous string, timeout time.Duration, panicFails bool) (guest.Hello, error) {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	var panicked <-chan struct{}
	if panicFails {
		panicked = m.console.panicked
	}
	for {
		hello, changed := m.client.hello()
		if hello.BootID != "" && hello.BootID != previous {
			return hello, nil
		}
		select {
		case <-changed:
		case <-panicked:
			m.console.settle(ctx)
			return hello, m.bootError("the kernel panicked")
		case <-m.exited:
			return hello, m.bootError("the machine ended")
		case <-deadline.C:
			return hello, m.bootError(fmt.Sprintf("no answer within %v", timeout))
		case <-ctx.Done():
			return hello, &InfraError{Op: "wait for " + m.cfg.Name, Err: ctx.Err(), Console: m.Console()}
		}
	}
}

// bootError blames the kernel when it has said anything at all, and us otherwise.
func (m *VM) bootError(what string) error {
	text := m.Console()
	if !saidAnything(text) {
		return &InfraError{Op: "boot " + m.cfg.Name, Err: errors.New(what), Console: text}
	}
	return &BootError{Name: m.cfg.Name, What: what, Console: text}
}

// Console returns all that the machine wrote to its serial console so far, the
// text of earlier boots included.
func (m *VM) Console() string { return m.console.text() }

// ConsoleFile is the path of the file that keeps the console.
func (m *VM) ConsoleFile() string { return m.console.path }

// Panics returns how often a kernel in this machine has panicked.
func (m *VM) Panics() int { return m.console.panics() }

// Stop ends the machine as pulling the plug would, and returns when it is gone.
// Stopping twice is fine.
func (m *VM) Stop() {
	m.stop.Do(func() {
		m.cmd.Process.Kill() //nolint:errcheck // has ended already then
		<-m.exited
		if m.client != nil {
			m.client.close()
		}
	})
}
