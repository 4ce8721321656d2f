package server

import (
	"slices"
	"sync"

	"livepatch"
)

// hub knows which machines hold an event stream, and wakes them.
type hub struct {
	mu       sync.Mutex
	machines map[string]*subscription
	closed   bool
}

// subscription is one machine's event stream. A machine has one: a new one takes
// the place of the old one, whose connection is probably dead.
type subscription struct {
	kernel livepatch.KernelTarget
	// check has a value when the machine is to check in.
	check chan struct{}
	// done is closed when the stream is to end.
	done chan struct{}
}

func (h *hub) subscribe(machine string, k livepatch.KernelTarget) *subscription {
	sub := &subscription{kernel: k, check: make(chan struct{}, 1), done: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(sub.done)
		return sub
	}
	if old := h.machines[machine]; old != nil {
		close(old.done)
	}
	h.machines[machine] = sub
	return sub
}

func (h *hub) unsubscribe(machine string, sub *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[machine] == sub {
		delete(h.machines, machine)
	}
}

// kernelOf notes which kernel a machine runs now.
func (h *hub) kernelOf(machine string, k livepatch.KernelTarget) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if sub := h.machines[machine]; sub != nil {
		sub.kernel = k
	}
}

// changed wakes every machine that runs one of the kernels.
func (h *hub) changed(kernels []livepatch.KernelTarget) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, sub := range h.machines {
		if !slices.Contains(kernels, sub.kernel) {
			continue
		}
		select {
		case sub.check <- struct{}{}:
		default: // it is to check in already
		}
	}
}

// end ends a machine's stream.
func (h *hub) end(machine string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if sub := h.machines[machine]; sub != nil {
		close(sub.done)
		delete(h.machines, machine)
	}
}

// close ends all streams, for shutdown.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for id, sub := range h.machines {
		close(sub.done)
		delete(h.machines, id)
	}
}

func (h *hub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.machines)
}
