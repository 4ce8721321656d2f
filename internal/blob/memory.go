package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is a Store that forgets: for tests, which make many. The zero value is
// empty and ready to use.
type Memory struct {
	mu    sync.Mutex
	blobs map[string]memoryBlob
}

type memoryBlob struct {
	content  []byte
	modified time.Time
}

// Put implements Store.
func (m *Memory) Put(ctx context.Context, name string, r io.Reader, size int64) error {
	if err := errors.Join(ctx.Err(), ValidName(name)); err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if int64(len(b)) != size {
		return fmt.Errorf("put %s: not the %d bytes announced", name, size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blobs == nil {
		m.blobs = map[string]memoryBlob{}
	}
	m.blobs[name] = memoryBlob{b, time.Now()}
	return nil
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := errors.Join(ctx.Err(), ValidName(name)); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[name]
	if !ok {
		return nil, fmt.Errorf("get %s: %w", name, ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(b.content)), nil
}

// Stat implements Store.
func (m *Memory) Stat(ctx context.Context, name string) (Info, error) {
	if err := errors.Join(ctx.Err(), ValidName(name)); err != nil {
		return Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[name]
	if !ok {
		return Info{}, fmt.Errorf("stat %s: %w", name, ErrNotFound)
	}
	return b.info(name), nil
}

func (b memoryBlob) info(name string) Info {
	return Info{Name: name, Size: int64(len(b.content)), Modified: b.modified}
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), ValidName(name)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, name)
	return nil
}

// List implements Store.
func (m *Memory) List(ctx context.Context, prefix string) ([]Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Info
	for _, name := range slices.Sorted(maps.Keys(m.blobs)) {
		if strings.HasPrefix(name, prefix) {
			found = append(found, m.blobs[name].info(name))
		}
	}
	return found, ctx.Err()
}
