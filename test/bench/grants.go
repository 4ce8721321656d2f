package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"livepatch"
	"livepatch/internal/agent"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
	"livepatch/internal/stream"

	"github.com/klauspost/compress/zstd"
)

const (
	grantRuns  = 11
	moduleSize = 1 << 20
)

// grants times the way from the server's grant to the kernel's door, for a module
// of 1 MB: fresh metadata, verification, cache, journal. The agent is the daemon's
// own code on the fake kernel, with a clock at both ends. Its download is left out:
// that is the network's.
func grants(ctx context.Context, s *stage) ([]row, error) {
	// The daemon must not be offered what is published here.
	if err := s.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	filling, err := os.ReadFile(s.bin("livepatchd"))
	if err != nil {
		return nil, err
	}
	m, err := s.newMachine(ctx)
	if err != nil {
		return nil, err
	}
	var took, yardstick []time.Duration
	for i := range grantRuns {
		// Code that differs each time, and packs as code does.
		pad := filling[1<<20+i<<16:][:moduleSize]
		path, err := s.publish(ctx, fmt.Sprintf("lp_bench_%02d", i+1), pad)
		if err != nil {
			return nil, err
		}
		t, err := m.apply(ctx)
		if err != nil {
			return nil, err
		}
		y, err := decode(path)
		if err != nil {
			return nil, err
		}
		took, yardstick = append(took, t), append(yardstick, y)
	}
	return []row{{
		Name: "Grant to finit_module: 1 MB module, without its download", Unit: "ms", Measured: millis(median(took)), Budget: atMost(100),
		Note:      fmt.Sprintf("median of %d, slowest %.1f", grantRuns, millis(slowest(took))),
		Yardstick: "zstd decode and SHA-256 of the module", Beside: millis(median(yardstick)),
	}}, nil
}

func slowest(times []time.Duration) (most time.Duration) {
	for _, t := range times {
		most = max(most, t)
	}
	return most
}

// decode times what nobody can do without: unpacking the module and hashing it.
func decode(path string) (time.Duration, error) {
	ko, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	archive, _, err := stream.CompressModule(ko)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	dec, err := zstd.NewReader(bytes.NewReader(archive), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	defer dec.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, dec)
	if err == nil && n != int64(len(ko)) {
		err = errors.New("the module was not unpacked whole")
	}
	sum.Sum(nil)
	return time.Since(begin), err
}

// watched is a machine whose agent is timed. It is its kernel's loader and its
// agent's transport.
type watched struct {
	kernel.Loader
	base   http.RoundTripper
	client *localapi.Client

	mu sync.Mutex
	// asked is when the last check-in was answered, download how long the last
	// archive took, loads when modules reached the kernel.
	asked    time.Time
	download time.Duration
	loads    []time.Duration
}

// newMachine enrols another machine.
func (s *stage) newMachine(ctx context.Context) (*watched, error) {
	k := kerneltest.New(bench{dir: s.path("watched")})
	k.Set("etc/machine-id", "fedcba9876543210fedcba9876543210\n")
	m := &watched{Loader: k}
	a, err := agent.New(agent.Options{
		StateDir: s.path("watched-state"), ConfigFile: s.path("livepatch.yaml"),
		Kernel: kernel.Open(k.Root, m), HTTP: m.http, Version: "bench",
		Random: rand.Reader, Jitter: mathrand.NewPCG(1, 2), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", s.path("watched.sock"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	s.stops = append(s.stops, func() error { cancel(); return <-served })
	if err := a.Start(ctx); err != nil {
		return nil, err
	}
	token, err := s.token(ctx)
	if err != nil {
		return nil, err
	}
	m.client = localapi.NewClient(s.path("watched.sock"))
	_, err = m.client.Enable(ctx, localapi.EnableRequest{Token: token, Server: s.url})
	return m, err
}

// apply checks once and returns how long the new livepatch took from the grant to
// the kernel, without the download.
func (m *watched) apply(ctx context.Context) (time.Duration, error) {
	m.mu.Lock()
	before := len(m.loads)
	m.mu.Unlock()
	r, err := m.client.Refresh(ctx, localapi.RefreshRequest{})
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.loads) != before+1 || m.download == 0 || r.Status.Status[0].Livepatch.State != livepatch.StateApplied {
		return 0, fmt.Errorf("the new livepatch was not downloaded and loaded: %s", r.Message)
	}
	return m.loads[before], nil
}

// http is agent.Options.HTTP.
func (m *watched) http(o agent.HTTPOptions) (*http.Client, error) {
	c, err := agent.NewHTTP(o)
	if err != nil {
		return nil, err
	}
	m.base = c.Transport
	c.Transport = m
	return c, nil
}

// RoundTrip notes when check-ins are answered and how long archives take.
func (m *watched) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	resp, err := m.base.RoundTrip(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
	case r.URL.Path == "/v1/check-in":
		m.asked = time.Now()
	case strings.HasPrefix(r.URL.Path, "/stream/archives/"):
		m.download = time.Since(begin)
		resp.Body = &download{resp.Body, m}
	}
	return resp, err
}

// Load implements kernel.Loader.
func (m *watched) Load(f *os.File, params string) error {
	m.mu.Lock()
	m.loads = append(m.loads, time.Since(m.asked)-m.download)
	m.mu.Unlock()
	return m.Loader.Load(f, params)
}

// download adds the time that reading takes.
type download struct {
	io.ReadCloser
	m *watched
}

func (d *download) Read(p []byte) (int, error) {
	begin := time.Now()
	n, err := d.ReadCloser.Read(p)
	d.m.mu.Lock()
	d.m.download += time.Since(begin)
	d.m.mu.Unlock()
	return n, err
}
