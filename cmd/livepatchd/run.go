package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"livepatch"
	"livepatch/internal/agent"
	"livepatch/internal/kernel"
	"livepatch/internal/localapi"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// flags are the command line.
type flags struct {
	config, state, socket, trust, root string
	debug, orderly, version            bool
}

func parseFlags(args []string, stderr io.Writer) (flags, error) {
	var f flags
	set := flag.NewFlagSet("livepatchd", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.StringVar(&f.config, "config", "/etc/livepatch/livepatch.yaml", "settings `file`; it may be missing")
	set.StringVar(&f.state, "state", "/var/lib/livepatch", "`folder` that keeps credential, signed metadata and journal")
	set.StringVar(&f.socket, "socket", localapi.SocketPath, "unix socket to listen on, unless systemd passes one")
	set.StringVar(&f.trust, "trust-root", "/usr/share/livepatch/root.json", "first root of the stream, if the package brings one")
	set.StringVar(&f.root, "root", "/", "`folder` below which the kernel is looked at; for tests")
	set.BoolVar(&f.debug, "debug", false, "log everything")
	set.BoolVar(&f.orderly, "mark-orderly", false, "note that this boot ends in an orderly way, if the system is stopping, and exit")
	set.BoolVar(&f.version, "version", false, "print the version and exit")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if set.NArg() > 0 {
		return f, fmt.Errorf("livepatchd takes no arguments, only flags: %q", set.Arg(0))
	}
	return f, nil
}

// run is the program. It returns the exit code.
func run(ctx context.Context, args []string, _ io.Reader, stdout, stderr io.Writer) int {
	f, err := parseFlags(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "livepatchd:", err)
		return exitUsage
	case f.version:
		fmt.Fprintln(stdout, version())
		return exitOK
	}
	if err := serve(ctx, f, stderr); err != nil {
		fmt.Fprintln(stderr, "livepatchd:", err)
		return exitFailure
	}
	return exitOK
}

// serve is the daemon, until ctx is done.
func serve(ctx context.Context, f flags, stderr io.Writer) error {
	if f.orderly {
		if !stopping(ctx) {
			return nil
		}
		return agent.MarkOrderly(f.state, kernel.Open(f.root, kernel.Syscalls()))
	}
	bound()
	var level slog.LevelVar
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: &level, ReplaceAttr: journalTime}))
	o := agent.Options{
		StateDir: f.state, ConfigFile: f.config, TrustFile: f.trust,
		Kernel:   kernel.Open(f.root, kernel.Syscalls()),
		Stopping: stopping, PreviousLog: previousLog, Version: version(),
		Random: rand.Reader, Jitter: mathrand.NewPCG(seed(), seed()), Log: log, Level: &level,
	}
	if f.debug {
		level.Set(slog.LevelDebug)
		o.Level = nil
	}
	a, err := agent.New(o)
	if err != nil {
		return err
	}
	l, err := listen(f.socket)
	if err != nil {
		return err
	}
	return loop(ctx, a, l, log)
}

// readyTime is when systemd is told that we are ready even though the livepatch of
// the last boot is still in transition: a boot does not wait for it any longer.
const readyTime = 45 * time.Second

// loop serves the socket while the agent works. The socket answers before Start is
// done: a transition at boot may take a minute, and status tells of it.
func loop(ctx context.Context, a *agent.Agent, l net.Listener, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan error, 1)
	go func() {
		err := a.Serve(ctx, l)
		cancel(err)
		served <- err
	}()
	go watchdog(ctx, log)
	late := time.AfterFunc(readyTime, func() { notify(daemon.SdNotifyReady, log) })
	err := a.Start(ctx)
	late.Stop()
	if err != nil && ctx.Err() == nil {
		return err
	}
	notify(daemon.SdNotifyReady, log)
	err = a.Run(ctx)
	notify(daemon.SdNotifyStopping, log)
	cancel(err)
	return errors.Join(err, <-served)
}

// bound keeps the daemon small: it works for a second an hour. The collector runs
// before the heap doubles, and hard before it reaches what a large module needs.
func bound() {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(64 << 20)
}

// journalTime drops the time from records: the journal has its own.
func journalTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// listen takes the socket that systemd passes, else makes its own. Everybody may
// connect; the agent looks at who it is.
func listen(path string) (net.Listener, error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("socket of systemd: %w", err)
	}
	if len(passed) > 0 && passed[0] != nil {
		return passed[0], nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, livepatch.Errorf(livepatch.CodeConflict, "another livepatchd listens at %s already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), l.Close())
	}
	return l, nil
}

// watchdog tells systemd that we live, where its unit asks for that (WatchdogSec,
// sd_watchdog_enabled(3)).
func watchdog(ctx context.Context, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	t := time.NewTicker(interval / 2)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			notify(daemon.SdNotifyWatchdog, log)
		}
	}
}

func notify(state string, log *slog.Logger) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Debug("notify systemd", "state", state, "err", err)
	}
}

// commandTime bounds the two commands below: both run while the machine goes down
// or comes up.
const commandTime = 5 * time.Second

// stopping asks systemd whether the machine is going down. Other service managers
// are not asked: a machine without systemd takes each reboot during a soak for a
// crash, which costs it one patch version and nothing else.
func stopping(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	// It exits with 1 for every state but "running", so only the word counts.
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	return strings.TrimSpace(string(out)) == "stopping"
}

// previousLog is the end of the kernel log of the boot before, where the journal
// is kept on disk; empty otherwise.
func previousLog(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "-k", "-b", "-1", "-n", "200", "-o", "cat", "--no-pager", "-q").Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}

// seed is random; crypto/rand never fails (its documentation).
func seed() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	var n uint64
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}
