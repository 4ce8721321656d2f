package server

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"livepatch/internal/api"
)

// Alarms tells people of halts and suspicions in one way, such as a webhook or mail.
// Make it with NewWebhook or NewMail.
type Alarms struct {
	// Name is what the log calls this way.
	Name string
	// Delays are the times to wait before each attempt but the first.
	Delays []time.Duration

	post  func(context.Context, api.Alarm) error
	queue chan api.Alarm
}

const (
	// alarmsQueued bounds the alarms that wait for a receiver that does not answer.
	alarmsQueued = 64
	// alarmTime bounds one attempt.
	alarmTime = 15 * time.Second
)

// newAlarms tries five times in about a quarter of an hour.
func newAlarms(name string, post func(context.Context, api.Alarm) error) *Alarms {
	return &Alarms{Name: name, post: post, queue: make(chan api.Alarm, alarmsQueued),
		Delays: []time.Duration{2 * time.Second, 15 * time.Second, 2 * time.Minute, 10 * time.Minute}}
}

// send queues an alarm. It fails when too many wait already; the alarm is in log and
// audit all the same.
func (q *Alarms) send(a api.Alarm) error {
	select {
	case q.queue <- a:
		return nil
	default:
		return fmt.Errorf("%d alarms wait for the %s already; %s of rollout %s is not sent", alarmsQueued, q.Name, a.Event, a.Rollout)
	}
}

// run delivers until ctx is done. Alarms that wait then are lost to the receiver.
func (q *Alarms) run(ctx context.Context, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-q.queue:
			if err := q.deliver(ctx, a); err != nil {
				log.Error("alarm not delivered", "by", q.Name, "event", a.Event, "rollout", a.Rollout, "err", err)
			}
		}
	}
}

// deliver posts one alarm until the receiver takes it or the attempts are used up.
func (q *Alarms) deliver(ctx context.Context, a api.Alarm) error {
	for try := 0; ; try++ {
		attempt, cancel := context.WithTimeout(ctx, alarmTime)
		err := q.post(attempt, a)
		cancel()
		if err == nil || try == len(q.Delays) {
			return err
		}
		wait := time.NewTimer(q.Delays[try])
		select {
		case <-ctx.Done():
			wait.Stop()
			return err
		case <-wait.C:
		}
	}
}
