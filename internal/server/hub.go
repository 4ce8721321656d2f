package server

import (
	"maps"
	"slices"
	"sync"
	"time"

	"livepatch"
)

// hub knows which machines hold an event stream, and wakes them.
type hub struct {
	mu       sync.Mutex
	machines map[string]*subscription
	closed   bool
	// left is when machines lost their stream that have none now.
	left map[string]time.Time
	now  func() time.Time
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
	delete(h.left, machine)
	return sub
}

func (h *hub) unsubscribe(machine string, sub *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.machines[machine] != sub {
		return
	}
	delete(h.machines, machine)
	now := h.now()
	if len(h.left) >= leftKept {
		maps.DeleteFunc(h.left, func(_ string, at time.Time) bool { return now.Sub(at) > time.Hour })
	}
	h.left[machine] = now
}

// leftKept is how many machines without a stream are remembered before those that
// left long ago are forgotten.
const leftKept = 10_000

// contact tells whether a machine holds a stream, and else when it lost it; zero
// when that is not known.
func (h *hub) contact(machine string) (connected bool, left time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.machines[machine] != nil, h.left[machine]
}

// wake wakes these machines, if they hold a stream.
func (h *hub) wake(machines []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range machines {
		if sub := h.machines[id]; sub != nil {
			sub.wake()
		}
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
		sub.wake()
	}
}

// wake tells the machine to check in.
func (s *subscription) wake() {
	select {
	case s.check <- struct{}{}:
	default: // it is to check in already
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
