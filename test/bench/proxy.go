package main

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// proxy passes TCP connections on to a server and counts what it passes: what an
// observer sees of TLS, without the headers of TCP and IP.
type proxy struct {
	net.Listener
	target   string
	up, down atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// newProxy listens on a free port of loopback.
func newProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{Listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.serve)
	return p, nil
}

func (p *proxy) serve() {
	for {
		client, err := p.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.wg.Go(func() { p.pass(server, client, &p.up) })
		p.wg.Go(func() { p.pass(client, server, &p.down) })
	}
}

// pass copies one direction and ends both with it.
func (p *proxy) pass(to, from net.Conn, n *atomic.Int64) {
	p.mu.Lock()
	p.conns[from] = struct{}{}
	p.mu.Unlock()
	_, _ = io.Copy(counter{to, n}, from)
	_, _ = to.Close(), from.Close()
	p.mu.Lock()
	delete(p.conns, from)
	p.mu.Unlock()
}

type counter struct {
	w io.Writer
	n *atomic.Int64
}

func (c counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.w.Write(b)
}

// drop cuts every connection.
func (p *proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) close() {
	_ = p.Close()
	p.drop()
	p.wg.Wait()
}

// traffic is what has passed, in bytes.
type traffic struct{ up, down int64 }

func (t traffic) sum() int64 { return t.up + t.down }

func (p *proxy) traffic() traffic { return traffic{p.up.Load(), p.down.Load()} }

// silence waits until nothing has passed for a while and returns what passed until
// then.
func (p *proxy) silence(ctx context.Context, quiet time.Duration) (traffic, error) {
	last, since := p.traffic(), time.Now()
	for time.Since(since) < quiet {
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return last, err
		}
		if now := p.traffic(); now != last {
			last, since = now, time.Now()
		}
	}
	return last, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// moved waits until more has passed than was.
func (p *proxy) moved(ctx context.Context, was traffic) error {
	for p.traffic() == was {
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
