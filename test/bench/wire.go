package main

import (
	"context"
	"fmt"
	"time"
)

// checks is how often the daemon checks; a keep-alive of the event stream may fall
// into one of them.
const checks = 7

// wire counts what a check that finds nothing new costs: the exchange with the
// server and the look at the signed stream.
func wire(ctx context.Context, s *stage) ([]row, error) {
	var up, down, all []int64
	for range checks {
		t, err := s.check(ctx)
		if err != nil {
			return nil, err
		}
		up, down, all = append(up, t.up), append(down, t.down), append(all, t.sum())
	}
	return []row{{
		Name: "A check that finds nothing new: bytes in TCP, both ways", Unit: "B", Measured: float64(median(all)), Budget: atMost(2000),
		Note: fmt.Sprintf("%d up, %d down", median(up), median(down)),
	}}, nil
}

// wireAnew is wire for a machine whose connection was cut.
func wireAnew(ctx context.Context, s *stage) ([]row, error) {
	s.proxy.drop()
	if err := sleep(ctx, 200*time.Millisecond); err != nil {
		return nil, err
	}
	t, err := s.check(ctx)
	return []row{{
		Name: "the same with a new TLS connection", Unit: "B", Measured: float64(t.sum()),
		Note: fmt.Sprintf("%d up, %d down", t.up, t.down),
	}}, err
}

// check lets the daemon check once and returns what that sent through the proxy.
func (s *stage) check(ctx context.Context) (traffic, error) {
	before, err := s.proxy.silence(ctx, 300*time.Millisecond)
	if err != nil {
		return before, err
	}
	if err := s.refresh(ctx); err != nil {
		return before, err
	}
	after, err := s.proxy.silence(ctx, 300*time.Millisecond)
	return traffic{after.up - before.up, after.down - before.down}, err
}
