package agent

import (
	"context"
	"runtime/debug"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/localapi"
)

// idle is how long the loop waits when nothing is due by the clock.
const idle = 24 * time.Hour

// eventSpread is the longest that a machine waits after an event, so that all that
// hear of the same one do not come at once; a halt still arrives in seconds.
const eventSpread = 4 * time.Second

// After a check that failed, the next comes after firstAgain, then twice that, up
// to the usual interval: at boot the network is often not there yet.
const firstAgain = 15 * time.Second

// Run loops until ctx is done: check with the server by the clock and on events,
// watch the health of what was loaded. Start must have been called.
func (a *Agent) Run(ctx context.Context) error {
	go a.follow(ctx)
	a.wake()
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		timer.Reset(a.untilNext(ctx))
		select {
		case <-ctx.Done():
			return a.stopped(context.WithoutCancel(ctx))
		case <-timer.C:
			a.turnOnce(ctx, false)
		case <-a.kick:
			a.turnOnce(ctx, true)
		}
	}
}

// turnOnce does what is due. asked is a check out of turn.
func (a *Agent) turnOnce(ctx context.Context, asked bool) {
	if a.lock(ctx) != nil {
		return // ctx is done
	}
	defer a.unlock()
	now := time.Now()
	news := a.health(now)
	news = a.lookAgain(ctx) || news
	a.outlived(now)
	if a.enabled() && (asked || news || !a.next.IsZero() && !now.Before(a.next)) {
		a.schedule(0)
		if err := a.check(ctx); err != nil && ctx.Err() == nil {
			a.again()
		}
	}
	// What a check needed goes back to the system: between two of them the
	// daemon only waits.
	debug.FreeOSMemory()
}

// schedule sets when to check next: as often as both the server and the settings
// want, and not all machines at once. 0 is what the settings say.
func (a *Agent) schedule(server time.Duration) {
	wait := a.settings.minutes("check-interval")
	if wait == 0 {
		a.next = time.Time{}
		return
	}
	if server > 0 {
		wait = min(wait, max(server, time.Minute))
	}
	a.next = time.Now().Add(a.spread.about(wait))
}

// again brings the next check forward after one that failed.
func (a *Agent) again() {
	wait := firstAgain << min(a.failures, 10)
	a.failures++
	if at := time.Now().Add(a.spread.about(wait)); !a.next.IsZero() && at.Before(a.next) {
		a.next = at
	}
}

// untilNext is how long nothing is due.
func (a *Agent) untilNext(ctx context.Context) time.Duration {
	if a.lock(ctx) != nil {
		return idle // ctx is done
	}
	defer a.unlock()
	now, wait := time.Now(), idle
	if a.enabled() && !a.next.IsZero() {
		wait = min(wait, a.next.Sub(now))
	}
	if due, ok := a.healthDue(); ok {
		wait = min(wait, due.Sub(now))
	}
	if a.leaving() {
		wait = min(wait, lookPause)
	}
	return max(wait, 0)
}

// Between two attempts to hold the event stream.
const (
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// follow holds the server's event stream while the machine is enabled.
func (a *Agent) follow(ctx context.Context) {
	retry := firstRetry
	missed := false // the loop makes the first check by itself
	for ctx.Err() == nil {
		changed := a.listen.wait()
		c := a.listener(ctx)
		if c == nil {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		if a.hear(ctx, c, changed, missed) {
			retry = firstRetry
		}
		missed = true
		a.pause(ctx, changed, a.spread.about(retry))
		retry = min(2*retry, lastRetry)
	}
}

// listener is the client to listen with; nil when there is nobody to listen to.
func (a *Agent) listener(ctx context.Context) *api.Client {
	if a.lock(ctx) != nil {
		return nil
	}
	defer a.unlock()
	if !a.enabled() {
		return nil
	}
	c, err := a.server()
	if err != nil {
		return nil
	}
	return c
}

// hear listens until the stream breaks or changed; it returns whether it was
// connected.
// With missed it makes the loop check once it is connected.
func (a *Agent) hear(ctx context.Context, c *api.Client, changed <-chan struct{}, missed bool) (connected bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	for e, err := range c.Events(ctx) {
		switch {
		case err != nil:
			a.o.Log.Debug("events", "err", err)
			return connected
		case e.Kind == api.Connected:
			connected = true
			if missed { // events may have come while nobody listened
				a.pause(ctx, changed, a.spread.within(eventSpread))
				a.wake()
			}
		case e.Kind == api.EventCheck:
			a.heard.Add(1)
			a.pause(ctx, changed, a.spread.within(eventSpread))
			a.wake()
		}
	}
	return connected
}

// pause waits for d, or until something changes.
func (a *Agent) pause(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
	}
}

// refresh checks with the server now, by a person's wish.
func (a *Agent) refresh(ctx context.Context, r localapi.RefreshRequest) (localapi.RefreshResponse, error) {
	var resp localapi.RefreshResponse
	if err := a.lock(ctx); err != nil {
		return resp, err
	}
	defer a.unlock()
	if !a.enabled() {
		return resp, errNotEnabled
	}
	a.memory.Held = false
	a.note(areaHeld, nil)
	a.note(areaState, nil)
	if r.RetrySuspect {
		a.memory.Suspects, a.memory.Downs = nil, downs{}
		a.noteSuspects()
	}
	if err := a.saveMemory(); err != nil {
		return resp, err
	}
	a.wish = &r
	err := a.check(ctx)
	a.wish = nil
	a.publish()
	if err != nil {
		return resp, err
	}
	s, err := a.statusNow(time.Now())
	if err != nil {
		return resp, err
	}
	return localapi.RefreshResponse{Message: a.sentence(s), Status: s}, nil
}

// sentence says what a check came to.
func (a *Agent) sentence(s localapi.Status) string {
	p := s.Status[0].Livepatch
	switch {
	case len(s.Problems) > 0:
		return s.Problems[0].Message
	case p.State == livepatch.StateApplied:
		return "Livepatch " + p.Version.String() + " is applied."
	case a.memory.Last != nil && a.memory.Last.Response.Reason != "":
		return a.memory.Last.Response.Reason
	case p.State == livepatch.StateNothingToApply:
		return "There is no livepatch for kernel " + s.Status[0].Kernel + "."
	}
	return "Checked; the patch state is " + string(p.State) + "."
}
