package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// field reads a number from a status file of /proc (proc_pid_status(5)).
func field(path, name string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseInt(strings.Fields(value)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// resident is memory in megabytes: all, and what of it is file pages, which the
// kernel can drop and processes share.
func resident(pid int) (all, file float64, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	rss, err1 := field(path, "VmRSS")
	files, err2 := field(path, "RssFile")
	return float64(rss) * 1024 / 1e6, float64(files) * 1024 / 1e6, errors.Join(err1, err2)
}

// switches counts how often threads of a process went to sleep: one that does
// nothing at all makes none. A thread that ends takes its count along; the Go
// runtime keeps its threads.
func switches(pid int) (int64, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d has no threads: %w", pid, errors.Join(err, os.ErrNotExist))
	}
	var sum int64
	for _, path := range tasks {
		n, err := field(path, "voluntary_ctxt_switches")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// startIdle starts the yardstick that holds one HTTPS connection and does nothing.
func (s *stage) startIdle(ctx context.Context) (pid int, stop func() error, err error) {
	c := exec.CommandContext(ctx, s.bin("idle"), s.url+"/healthz", s.ca)
	stop, err = s.start(c, "idle.log")
	if err != nil {
		return 0, nil, err
	}
	err = s.until(ctx, "the yardstick is connected", func() error {
		b, err := os.ReadFile(s.path("idle.log"))
		if err == nil && string(b) != "connected\n" {
			err = fmt.Errorf("it says %q", b)
		}
		return err
	})
	return c.Process.Pid, stop, errors.Join(err, sleep(ctx, time.Second))
}

// memory is the daemon's after a check-in that found nothing to do.
func memory(ctx context.Context, s *stage) ([]row, error) {
	pid, stop, err := s.startIdle(ctx)
	if err != nil {
		return nil, err
	}
	beside, _, err := resident(pid)
	if err := errors.Join(err, stop()); err != nil {
		return nil, err
	}
	if err := errors.Join(s.refresh(ctx), sleep(ctx, time.Second)); err != nil {
		return nil, err
	}
	all, file, err := resident(s.daemon.Process.Pid)
	return []row{{
		Name: "Daemon: resident memory after a check-in", Unit: "MB", Measured: all, Budget: atMost(20),
		Note:      fmt.Sprintf("%.1f MB its own, %.1f MB pages of the program's file", all-file, file),
		Yardstick: "Go program with one HTTPS connection", Beside: beside,
	}}, err
}

// The server's event stream shows that it lives every 30 s, give or take 6, and
// the daemon takes 5 s to connect again when it was cut: after settled without a
// byte, nothing comes for another window.
const (
	settled = 7 * time.Second
	window  = 15 * time.Second
	// lifeSign is more than a keep-alive and a ping have, and less than connecting
	// the stream takes, in bytes of TLS both ways.
	lifeSign = 200
)

// attempts is how often the daemon is watched until the stream is not cut meanwhile.
const attempts = 4

// wakeups watches the daemon over one sign of life of the event stream, and then
// in the silence that follows.
func wakeups(ctx context.Context, s *stage) ([]row, error) {
	pid, stop, err := s.startIdle(ctx)
	if err != nil {
		return nil, err
	}
	for range attempts {
		var w watch
		if w, err = s.watch(ctx, pid); err != nil || w.undisturbed {
			err = errors.Join(err, stop())
			return []row{
				{
					Name: "Daemon: thread wake-ups in 15 s without an event", Measured: float64(w.daemon), Budget: atMost(0),
					Yardstick: "Go program with one idle HTTPS connection", Beside: float64(w.idle),
				},
				{Name: "Daemon: thread wake-ups by one keep-alive of the stream", Measured: float64(w.keepAlive)},
			}, err
		}
	}
	return nil, errors.Join(fmt.Errorf("the event stream was cut or not silent for %s in each of %d attempts", window, attempts), stop())
}

// watch is how often threads woke up.
type watch struct {
	// keepAlive is the daemon's count over one message of the stream; daemon and
	// idle are those of daemon and yardstick in the window after it.
	keepAlive, daemon, idle int64
	// undisturbed tells that it was one keep-alive, and nothing in the window.
	undisturbed bool
}

func (s *stage) watch(ctx context.Context, idle int) (watch, error) {
	var errs []error
	count := func(pid int) int64 {
		n, err := switches(pid)
		errs = append(errs, err)
		return n
	}
	daemon := s.daemon.Process.Pid
	start, err := s.proxy.silence(ctx, 2*time.Second)
	before := count(daemon)
	errs = append(errs, err, s.proxy.moved(ctx, start))
	quiet, err := s.proxy.silence(ctx, settled)
	alive, idleBefore := count(daemon), count(idle)
	errs = append(errs, err, sleep(ctx, window))
	w := watch{keepAlive: alive - before, daemon: count(daemon) - alive, idle: count(idle) - idleBefore}
	w.undisturbed = quiet.sum()-start.sum() < lifeSign && s.proxy.traffic() == quiet
	return w, errors.Join(errs...)
}
