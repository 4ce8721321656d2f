package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

const (
	// judgeEvery is how often rollouts are looked at when no bad news comes: news is
	// weighed at once.
	judgeEvery = 10 * time.Second
	// settled is when a rollout that has not changed since is looked at only each
	// settledEvery-th time, if no bad news comes; judgedFor, when it is left alone:
	// harm that shows later is not found by comparing anyway.
	settled      = 24 * time.Hour
	settledEvery = 60
	judgedFor    = 30 * 24 * time.Hour
	// quietStream is how long a machine may be silent whose event stream broke, and
	// what is added for one that has none and checks in from time to time. Machines
	// with a patch and without are held to the same.
	quietStream = 20 * time.Minute
)

// judging looks at the rollouts at every tick, and whenever there is news, until ctx
// is done. A failure is logged and tried again at the next tick.
func (s *Server) judging(ctx context.Context, tick <-chan time.Time) error {
	all := true
	for n := 1; ; n++ {
		if err := s.judgeRollouts(ctx, all); err != nil && ctx.Err() == nil {
			s.Log.Error("judge rollouts", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
			all = n%settledEvery == 0
		case <-s.news:
			all = true
		}
	}
}

// nudge has the rollouts looked at soon.
func (s *Server) nudge() {
	select {
	case s.news <- struct{}{}:
	default: // they are to be looked at already
	}
}

// JudgeRollouts weighs the evidence on every rollout that moves, and does what
// follows: halts, goes on to the next stage, and tells machines whose turn it is.
func (s *Server) JudgeRollouts(ctx context.Context) error { return s.judgeRollouts(ctx, true) }

// judgeRollouts leaves out those that have settled unless all is set.
func (s *Server) judgeRollouts(ctx context.Context, all bool) error {
	within := settled
	if all {
		within = judgedFor
	}
	ids, err := s.Store.MovingRollouts(ctx, within)
	if err != nil {
		return err
	}
	var failures []error
	for _, id := range ids {
		if err := s.judge(ctx, id); err != nil {
			failures = append(failures, fmt.Errorf("rollout %s: %w", id, err))
		}
	}
	states, err := s.Store.RolloutStates(ctx)
	s.metrics.rolloutStates(states)
	return errors.Join(append(failures, err)...)
}

func (s *Server) judge(ctx context.Context, id string) error {
	now := s.Now()
	j, err := s.Store.JudgeRollout(ctx, id, func(e store.Evidence) store.Judgement {
		return weigh(e, func(m store.Member) contact { return s.heardOf(m, now) })
	})
	if err != nil {
		return err
	}
	for _, c := range j.Changes {
		s.announce(j.Rollout, c)
	}
	if j.Halt != nil {
		return s.halt(ctx, rollout.ActorJudge, id, j.Halt.Reason, j.Halt.Assessment)
	}
	s.hub.wake(j.Waiting)
	return nil
}

// heardOf is when m was last heard of. While it holds an event stream that is now,
// and as the stream may break in the next moment, m has from now on as long as one
// whose stream broke: what it reports while it is being judged is later than now.
// A server that was away has heard nobody, which is no machine's fault.
func (s *Server) heardOf(m store.Member, now time.Time) contact {
	connected, left := s.hub.contact(m.ID)
	if connected {
		return contact{at: now, until: now.Add(quietStream), connected: true}
	}
	c, quiet := contact{at: m.LastSeen}, s.CheckInterval*5/4+quietStream
	if !left.Before(c.at) {
		c.at, quiet = left, quietStream
	}
	c.until = c.at.Add(quiet)
	if awake := s.began.Add(quiet); awake.After(c.until) {
		c.until = awake
	}
	return c
}

// halt is the one way to halt, and raises it. assessment may be nil.
func (s *Server) halt(ctx context.Context, actor, id, reason string, assessment *rollout.Assessment) error {
	change, err := s.Store.HaltRollout(ctx, actor, id, reason, assessment)
	if err != nil || change == nil {
		return err
	}
	r, err := s.Store.Rollout(ctx, id)
	if err != nil {
		return err
	}
	s.changed(r.Rollout, *change)
	return nil
}

// changed tells machines and people that a rollout is not what it was: all machines
// of its kernel check in, because any of them may hold a grant.
func (s *Server) changed(r rollout.Rollout, c rollout.StageChange) {
	s.hub.changed([]livepatch.KernelTarget{r.Kernel})
	s.announce(r, c)
}

// announce tells people, by log, metric, webhook and mail.
func (s *Server) announce(r rollout.Rollout, c rollout.StageChange) {
	s.metrics.changes.WithLabelValues(c.Action, actorKind(c.Actor)).Inc()
	attrs := []any{"rollout", r.ID, "kernel", r.Kernel.String(), "version", r.Version.String(), "actor", c.Actor, "to", string(c.To), "reason", c.Reason}
	if a := c.Assessment; a != nil {
		attrs = append(attrs, "evidence", a.Evidence, "threshold", a.Threshold)
	}
	if c.Action != "halt" && c.Action != "caution" {
		s.Log.Info("rollout: "+c.Action, attrs...)
		return
	}
	s.Log.Error("rollout: "+c.Action, attrs...)
	for _, way := range s.Alarms {
		if err := way.send(api.Alarm{Event: "rollout." + c.Action, Rollout: r.ID, Kernel: r.Kernel, Version: r.Version, Change: c}); err != nil {
			s.Log.Error("alarm not sent", "by", way.Name, "err", err)
		}
	}
}

// actorKind is the actor without the name.
func actorKind(actor string) string {
	if actor == rollout.ActorJudge {
		return actor
	}
	return "operator"
}
