package streamtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"sync"
)

// Store is a stream.Store in memory: a repository has a hundred files, and tests
// make many repositories. The zero value is empty.
type Store struct {
	mu    sync.Mutex
	files map[string][]byte
}

// Put implements stream.Store.
func (s *Store) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	b, err := io.ReadAll(r)
	switch {
	case err != nil:
		return err
	case int64(len(b)) != size:
		return fmt.Errorf("put %s: %d bytes, announced as %d", name, len(b), size)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string][]byte{}
	}
	s.files[name] = b
	return nil
}

// Get implements stream.Store.
func (s *Store) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[name]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(b)), ctx.Err()
}

// Delete implements stream.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
	return ctx.Err()
}

// Files returns all that is stored, by name.
func (s *Store) Files() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.files)
}
