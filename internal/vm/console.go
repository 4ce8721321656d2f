package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// panicMark begins the line of every panic (kernel/panic.c).
const panicMark = "Kernel panic - not syncing"

// console keeps what a machine says, in memory and in a file, and notices panics.
type console struct {
	path     string
	panicked chan struct{} // closed at the first panic

	mu    sync.Mutex
	file  *os.File
	buf   bytes.Buffer
	count int
	seen  int // how much of buf was searched for panics
}

func newConsole(path string) (*console, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("keep console: %w", err)
	}
	return &console{path: path, file: file, panicked: make(chan struct{})}, nil
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p)
	c.file.Write(p) //nolint:errcheck // the copy in memory is what counts
	for {
		i := bytes.Index(c.buf.Bytes()[c.seen:], []byte(panicMark))
		if i < 0 {
			// The mark may yet be completed by the next write.
			c.seen = max(c.seen, c.buf.Len()-len(panicMark))
			return len(p), nil
		}
		c.seen += i + len(panicMark)
		c.count++
		if c.count == 1 {
			close(c.panicked)
		}
	}
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.buf.String(), "\r\n", "\n")
}

func (c *console) panics() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// settle waits until the console has been quiet for a moment, so that the text of
// a panic is whole; two seconds at most.
func (c *console) settle(ctx context.Context) {
	before := -1
	for range 20 {
		now := len(c.text())
		if now == before {
			return
		}
		before = now
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

func (c *console) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.file.Close() //nolint:errcheck // the copy in memory is what counts
}

// saidAnything tells whether a kernel began to run: its banner is the first line
// of its log.
func saidAnything(text string) bool { return strings.Contains(text, "Linux version ") }
