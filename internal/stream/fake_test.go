package stream_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"livepatch"
	"livepatch/internal/stream"
)

// server is a Fetcher that misbehaves on order.
type server struct {
	stream.Fetcher
	// answer, when set, replaces the content of a file; nil is "not found".
	answer func(name string, b []byte) []byte
	// date is what it says the time is.
	date time.Time

	mu    sync.Mutex
	asked []string
}

func (s *server) Fetch(ctx context.Context, name, etag string) (stream.Fetched, error) {
	s.mu.Lock()
	s.asked = append(s.asked, name)
	s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return stream.Fetched{}, err
	}
	got, err := s.Fetcher.Fetch(ctx, name, etag)
	if err != nil || got.NotModified {
		return got, err
	}
	got.Date = s.date
	if s.answer == nil {
		return got, nil
	}
	b, err := io.ReadAll(got.Body)
	if err != nil {
		return got, err
	}
	b = s.answer(name, b)
	if b == nil {
		return stream.Fetched{}, livepatch.Errorf(livepatch.CodeNotFound, "no %s", name)
	}
	got.Body = io.NopCloser(bytes.NewReader(b))
	return got, nil
}

// times counts how often a file whose name ends so was asked for.
func (s *server) times(suffix string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, name := range s.asked {
		if strings.HasSuffix(name, suffix) {
			n++
		}
	}
	return n
}

// record returns an answer that keeps what it sees in files.
func record(files map[string][]byte) func(string, []byte) []byte {
	return func(name string, b []byte) []byte {
		files[name] = bytes.Clone(b)
		return b
	}
}

// rooted adds a second root to a stream.
type rooted struct {
	stream.Fetcher
	root []byte
}

func (r rooted) Fetch(ctx context.Context, name, etag string) (stream.Fetched, error) {
	if name == "metadata/2.root.json" {
		return stream.Fetched{Body: io.NopCloser(bytes.NewReader(r.root))}, nil
	}
	return r.Fetcher.Fetch(ctx, name, etag)
}

// overlay serves files of its own in front of another Fetcher's.
type overlay struct {
	stream.Fetcher
	files map[string][]byte
}

func (o overlay) Fetch(ctx context.Context, name, etag string) (stream.Fetched, error) {
	if b, ok := o.files[name]; ok {
		return stream.Fetched{Body: io.NopCloser(bytes.NewReader(b))}, nil
	}
	return o.Fetcher.Fetch(ctx, name, etag)
}
