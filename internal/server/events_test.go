package server

import (
	"context"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
)

// follow holds a machine's event stream open and hands on what comes; the channel
// is closed when the stream ends. It returns once the stream is open.
func follow(t *testing.T, ctx context.Context, c *api.Client) <-chan api.EventKind {
	t.Helper()
	events := make(chan api.EventKind, 16)
	go func() {
		defer close(events)
		for e, err := range c.Events(ctx) {
			if err != nil {
				return
			}
			events <- e.Kind
		}
	}()
	if k := wait(t, ctx, events, "the stream to open"); k != api.Connected {
		t.Fatalf("first event is %q", k)
	}
	return events
}

func TestPublishWakesMachinesOfThatKernel(t *testing.T) {
	t.Parallel()
	f := newServer(t, func(o *Options) { o.KeepAlive = func() time.Duration { return time.Millisecond } })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	machine, _ := f.enrol(t, 1)
	events := follow(t, ctx, machine)
	f.publish(t, kernel, "one")
	if k := wait(t, ctx, events, "an event after a publication"); k != api.EventCheck {
		t.Fatalf("event is %q, want check", k)
	}
	other := kernel
	other.Release = "6.1.0-48-cloud-amd64"
	f.publish(t, other, "for another kernel")
	// The machine boots the other kernel; from its check-in on it is told of that
	// one, and it was not told before.
	in := checkIn()
	in.Kernel = other
	_, err := machine.CheckIn(ctx, in)
	must(t, err)
	select {
	case k := <-events:
		t.Fatalf("event %q about another machine's kernel", k)
	default:
	}
	f.withdraw(t, other, livepatch.Version{Major: 1, Minor: 1})
	if k := wait(t, ctx, events, "an event after a withdrawal"); k != api.EventCheck {
		t.Fatalf("event is %q, want check", k)
	}
}

func TestEventStreamEndsWithTheMachine(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	machine, id := f.enrol(t, 1)
	first := follow(t, ctx, machine)
	second := follow(t, ctx, machine)
	if k := wait(t, ctx, first, "the older stream to end"); k != "" {
		t.Fatalf("event %q on a stream that was replaced", k)
	}
	must(t, f.operator.RemoveMachine(ctx, id))
	if k := wait(t, ctx, second, "the stream to end"); k != "" {
		t.Fatalf("event %q on the stream of a removed machine", k)
	}
	for _, err := range machine.Events(ctx) {
		wantCode(t, err, livepatch.CodeUnauthorized)
	}
}
