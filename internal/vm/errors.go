package vm

import (
	"errors"
	"fmt"
)

// BootError is the fault of the kernel or the system in the machine: it did not
// come up, hung or panicked.
type BootError struct {
	// Name is the machine's, What a few words for what happened.
	Name, What string
	// Console is everything the machine had said.
	Console string
}

func (e *BootError) Error() string {
	return fmt.Sprintf("%s: %s; its console:\n%s", e.Name, e.What, tail(e.Console, 8<<10))
}

// InfraError is our fault or this host's: the kernel had no part in it.
type InfraError struct {
	// Op is what was being done.
	Op  string
	Err error
	// Console is what the machine, or QEMU, had said; often empty.
	Console string
}

func (e *InfraError) Error() string {
	if e.Console == "" {
		return fmt.Sprintf("%s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("%s: %v; QEMU and the console said:\n%s", e.Op, e.Err, tail(e.Console, 8<<10))
}

func (e *InfraError) Unwrap() error { return e.Err }

// ErrRebooted tells that the machine rebooted before it answered.
var ErrRebooted = errors.New("the machine rebooted before it answered")

// ErrNoAnswer tells that the machine runs but its guest does not answer.
var ErrNoAnswer = errors.New("the guest does not answer")

// ErrStopped tells that the machine has ended.
var ErrStopped = errors.New("the machine has ended")

// tail keeps the last n bytes of s, from the beginning of a line.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	for i := range len(s) {
		if s[i] == '\n' {
			return "[...]" + s[i:]
		}
	}
	return s
}
