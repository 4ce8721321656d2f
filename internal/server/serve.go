package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// flushEvery is how often last-seen times are written.
	flushEvery = 5 * time.Second
	// renewEvery is how often the stream's freshness is looked at. It must be well
	// below the timestamp's life.
	renewEvery = 10 * time.Minute
	// drainTime is how long requests that are being answered may take at shutdown.
	drainTime = 20 * time.Second
)

// Serve finishes what an earlier run left half done, then answers on l until ctx
// is done, and then lets running requests end. With conf nil it speaks plain HTTP,
// for loopback and tests. ready is called once it answers.
func (s *Server) Serve(ctx context.Context, l net.Listener, conf *tls.Config, ready func()) error {
	if err := s.check(ctx); err != nil {
		return errors.Join(err, l.Close())
	}
	s.tend(ctx)
	srv := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         conf,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 * kib,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		// A machine that went down without a word is noticed by its not answering pings.
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	srv.RegisterOnShutdown(s.hub.close)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := serveOn(srv, l)
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serve: %w", err)
	})
	g.Go(func() error {
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			return errors.Join(fmt.Errorf("drain: %w", err), srv.Close())
		}
		return nil
	})
	g.Go(func() error { return s.background(ctx) })
	judge := time.NewTicker(judgeEvery)
	defer judge.Stop()
	g.Go(func() error { return s.judging(ctx, judge.C) })
	for _, way := range s.Alarms {
		g.Go(func() error { return way.run(ctx, s.Log) })
	}
	if ready != nil {
		ready()
	}
	return g.Wait()
}

// check finds out before serving whether it can work.
func (s *Server) check(ctx context.Context) error {
	if err := s.Store.Ping(ctx); err != nil {
		return err
	}
	if s.RolloutPolicy == "" {
		return nil
	}
	if _, err := s.Store.Policy(ctx, s.RolloutPolicy); err != nil {
		return fmt.Errorf("setting rollout-policy: %w", err)
	}
	return nil
}

func serveOn(srv *http.Server, l net.Listener) error {
	if srv.TLSConfig == nil {
		return srv.Serve(l)
	}
	return srv.ServeTLS(l, "", "")
}

// background does what is to be done from time to time. A failure is logged and
// tried again: answering machines is worth more than stopping.
func (s *Server) background(ctx context.Context) error {
	flush, renew := time.NewTicker(flushEvery), time.NewTicker(renewEvery)
	defer flush.Stop()
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-flush.C:
			if err := s.Store.Flush(ctx); err != nil {
				s.Log.Error("flush", "err", err)
			}
		case <-renew.C:
			s.tend(ctx)
		}
	}
}

// tend finishes publications and keeps the stream fresh. A failure is no reason
// not to answer machines: it is tried again, and the stream's expiry shows it.
func (s *Server) tend(ctx context.Context) {
	if err := errors.Join(s.FinishPublications(ctx), s.renew(ctx)); err != nil && ctx.Err() == nil {
		s.Log.Error("tend the stream", "err", err)
	}
}

// renew keeps the stream from expiring.
func (s *Server) renew(ctx context.Context) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if _, _, err := s.Stream.Renew(ctx); err != nil {
		return fmt.Errorf("renew the stream: %w", err)
	}
	s.metrics.renewed.Set(float64(s.Now().Unix()))
	return nil
}
