package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"livepatch"
)

// Transition is a transition that ended.
type Transition struct {
	// Duration is how long it was watched, rounded up to a poll.
	Duration time.Duration
}

// Task is a thread that has not reached the state a transition moves to.
type Task struct {
	PID, TID int
	Comm     string
	// Stack is the kernel stack, one function a line, without addresses; empty
	// when it may not be read (needs CAP_SYS_ADMIN and CONFIG_STACKTRACE).
	Stack string
}

// String is the task as a sentence names it: "bash (412)".
func (t Task) String() string { return fmt.Sprintf("%s (%d)", t.Comm, t.TID) }

// StuckError is in the chain of the error that says that a transition did not end
// in time.
type StuckError struct {
	Module string
	// Reversing tells that the patch was on its way out.
	Reversing bool
	// Tasks hold it up, at most maxTasks. Empty when only idle tasks do, which
	// /proc does not show, or when they moved on meanwhile.
	Tasks []Task
}

func (e *StuckError) Error() string {
	if len(e.Tasks) == 0 {
		return "no task in /proc holds it up"
	}
	names := make([]string, 0, len(e.Tasks))
	for _, t := range e.Tasks {
		names = append(names, t.String())
	}
	return "held up by " + strings.Join(names, ", ")
}

// Evidence is every task with its stack, for a report.
func (e *StuckError) Evidence() string {
	var b strings.Builder
	for _, t := range e.Tasks {
		fmt.Fprintf(&b, "%s pid %d\n%s\n", t, t.PID, t.Stack)
	}
	return b.String()
}

// Between two looks at a transition: short first, since most end within two
// seconds, then once a second, as often as the kernel itself tries
// (klp_try_complete_transition schedules itself each second).
const (
	firstPoll = 20 * time.Millisecond
	lastPoll  = time.Second
)

// WaitTransition waits until the patch is in force for every task.
//
// Nothing here pushes tasks along, because the kernel does: it looks at each
// sleeping task's stack every second and, every 15 seconds, wakes kernel threads
// and sends the others a signal that they do not see (klp_send_signals, by itself
// since Linux 5.1). The file force is never written: it breaks the promise that
// no task runs old and new code at once, and the module can then never be removed.
//
// After timeout the error has CodeStuck and carries a *StuckError; the transition
// goes on, and the caller may wait again or Reverse it. CodeConflict: somebody
// else disabled the patch. CodeNotFound: it is not there.
func (s *System) WaitTransition(ctx context.Context, name string, timeout time.Duration) (Transition, error) {
	start := time.Now()
	done, err := s.wait(ctx, name, true, timeout)
	switch {
	case err != nil:
		return Transition{}, err
	case !done:
		return Transition{}, livepatch.Errorf(livepatch.CodeConflict, "livepatch %s was disabled by somebody else while it was being applied", name)
	}
	return Transition{Duration: time.Since(start)}, nil
}

// wait polls until the patch is enabled, or not, without transition. It returns
// false when the patch goes the other way.
func (s *System) wait(ctx context.Context, name string, enabled bool, timeout time.Duration) (bool, error) {
	deadline := time.Now().Add(timeout)
	seen := false
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		p, err := s.Patch(name)
		switch {
		case livepatch.CodeOf(err) == livepatch.CodeNotFound && (seen || !enabled):
			return !enabled, nil // a patch that ends disabled leaves
		case err != nil:
			return false, err
		case !p.Transition:
			return p.Enabled == enabled, nil
		}
		seen = true
		left := time.Until(deadline)
		if left <= 0 {
			return false, s.stuck(name, p.Enabled, timeout)
		}
		if err := sleep(ctx, min(pause, left)); err != nil {
			return false, fmt.Errorf("wait for livepatch %s: %w", name, err)
		}
	}
}

func (s *System) stuck(name string, applying bool, timeout time.Duration) error {
	e := &StuckError{Module: name, Reversing: !applying, Tasks: s.blocking(applying)}
	verb := "applied"
	if !applying {
		verb = "taken back"
	}
	return livepatch.Errorf(livepatch.CodeStuck, "livepatch %s could not be %s within %s: %w", name, verb, timeout, e)
}

// Reverse turns a transition round: tasks go back to the old code. It waits for
// that and removes the module. A transition that ended meanwhile makes it Disable.
func (s *System) Reverse(ctx context.Context, name string, timeout time.Duration) error {
	return s.Disable(ctx, name, timeout)
}

// Disable takes a patch out of force, waits for its transition at most timeout
// and removes the module. Done already is no error, so that it can be repeated.
// CodeStuck as with WaitTransition; CodeConflict while another patch is in
// transition, or, before Linux 5.1, while one is stacked on it.
func (s *System) Disable(ctx context.Context, name string, timeout time.Duration) error {
	p, err := s.Patch(name)
	if err != nil && livepatch.CodeOf(err) != livepatch.CodeNotFound {
		return err
	}
	if p.Enabled {
		if err := s.disable(name); err != nil {
			return err
		}
	}
	done, err := s.wait(ctx, name, false, timeout)
	switch {
	case err != nil:
		return err
	case !done:
		return livepatch.Errorf(livepatch.CodeConflict, "livepatch %s was enabled again by somebody else while it was being disabled", name)
	}
	return s.Remove(ctx, name)
}

// disable writes 0 to enabled (kernel/livepatch/core.c, enabled_store).
func (s *System) disable(name string) error {
	err := s.loader.SetEnabled(s.path(livepatchDir, name, "enabled"), false)
	switch {
	case err == nil, gone(err):
		return nil
	case errors.Is(err, syscall.EINVAL):
		return nil // it is in that state; wait looks again
	case errors.Is(err, syscall.EBUSY):
		return livepatch.Errorf(livepatch.CodeConflict, "livepatch %s cannot be disabled now: another livepatch is in transition or stacked on it: %w", name, err)
	case errors.Is(err, fs.ErrPermission):
		return livepatch.Errorf(livepatch.CodeNotPrivileged, "livepatch %s can be disabled by root only: %w", name, err)
	}
	return fmt.Errorf("disable livepatch %s: %w", name, err)
}

// gone tells errors that mean that a file of /proc or /sys is not there (any
// more): a kobject or task that leaves while the file is open gives ENODEV or
// ESRCH.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ESRCH)
}

// maxTasks bounds how many blocking tasks are named.
const maxTasks = 32

// BlockingTasks are the threads that hold up the transition of the patch, in
// order of thread id, at most 32; none when it is not in transition.
func (s *System) BlockingTasks(name string) []Task {
	p, err := s.Patch(name)
	if err != nil || !p.Transition {
		return nil
	}
	return s.blocking(p.Enabled)
}

// blocking finds the threads whose patch_state is the other one. The file reads 1
// for patched, 0 for unpatched, -1 outside a transition (kernel/livepatch/
// transition.c, task_struct.patch_state); there is one a thread, not one a process.
func (s *System) blocking(applying bool) []Task {
	behind := "1"
	if applying {
		behind = "0"
	}
	var tasks []Task
	for _, pid := range s.numbers("proc") {
		for _, tid := range s.numbers("proc", strconv.Itoa(pid), "task") {
			if len(tasks) == maxTasks {
				return tasks
			}
			dir := filepath.Join("proc", strconv.Itoa(pid), "task", strconv.Itoa(tid))
			if s.line(filepath.Join(dir, "patch_state")) != behind {
				continue
			}
			tasks = append(tasks, Task{
				PID: pid, TID: tid,
				Comm:  s.line(filepath.Join(dir, "comm")),
				Stack: cleanStack(s.line(filepath.Join(dir, "stack"))),
			})
		}
	}
	return tasks
}

// numbers lists the folder's entries that are numbers, in order of their names.
func (s *System) numbers(elem ...string) []int {
	entries, _ := os.ReadDir(s.path(elem...))
	var ns []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 {
			ns = append(ns, n)
		}
	}
	return ns
}

// cleanStack drops the addresses "[<0>] " that the kernel writes in front of each
// function of /proc/PID/stack.
func cleanStack(stack string) string {
	var b strings.Builder
	for line := range strings.Lines(stack) {
		if _, function, ok := strings.Cut(line, "] "); ok && strings.HasPrefix(line, "[<") {
			line = function
		}
		b.WriteString(line)
	}
	return b.String()
}
