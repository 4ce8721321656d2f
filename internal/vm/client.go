package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"livepatch/internal/vm/guest"
)

// client speaks to the guest. One client serves all boots of a machine.
type client struct {
	conn net.Conn

	write sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan guest.Response
	greeted guest.Hello
	changed chan struct{} // closed and renewed with each hello
	err     error         // set when reading ended
}

func newClient(conn net.Conn) *client {
	c := &client{conn: conn, waiting: map[uint64]chan guest.Response{}, changed: make(chan struct{})}
	go c.read()
	return c
}

func (c *client) close() { c.conn.Close() } //nolint:errcheck // nothing to lose

// read hands out responses until the connection ends.
func (c *client) read() {
	in := bufio.NewReaderSize(c.conn, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.err = ErrStopped
			c.dropWaiting()
			return
		}
		var resp guest.Response
		if json.Unmarshal(line, &resp) == nil {
			c.deliver(resp)
		}
	}
}

func (c *client) deliver(resp guest.Response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if resp.Hello != nil {
		c.greeted = *resp.Hello
		c.dropWaiting()
		close(c.changed)
		c.changed = make(chan struct{})
		return
	}
	if ch := c.waiting[resp.ID]; ch != nil {
		ch <- resp
		delete(c.waiting, resp.ID)
	}
}

// dropWaiting ends all requests in flight: their boot, or the machine, is gone.
func (c *client) dropWaiting() {
	for id, ch := range c.waiting {
		close(ch)
		delete(c.waiting, id)
	}
}

// hello returns the latest hello and a channel that is closed at the next one.
func (c *client) hello() (guest.Hello, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.greeted, c.changed
}

func (c *client) lastHello() guest.Hello {
	h, _ := c.hello()
	return h
}

// do sends a request and waits for its answer.
func (c *client) do(ctx context.Context, req guest.Request) (guest.Response, error) {
	answer := make(chan guest.Response, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return guest.Response{}, c.err
	}
	c.next++
	req.ID = c.next
	c.waiting[req.ID] = answer
	c.mu.Unlock()

	if err := c.send(req); err != nil {
		return guest.Response{}, err
	}
	select {
	case resp, ok := <-answer:
		switch {
		case !ok && c.stopped():
			return resp, ErrStopped
		case !ok:
			return resp, ErrRebooted
		case resp.Error != nil:
			return resp, errors.New(*resp.Error)
		}
		return resp, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, req.ID)
		c.mu.Unlock()
		if req.Run != nil {
			c.send(guest.Request{ID: req.ID, Kill: &guest.Kill{ID: req.ID}}) //nolint:errcheck // the command's own timeout remains
		}
		return guest.Response{}, context.Cause(ctx)
	}
}

func (c *client) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// send writes one message. A guest that does not read holds it up half a minute.
func (c *client) send(req guest.Request) error {
	b, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.conn.SetWriteDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	if _, err := c.conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// Run runs a command in the guest and returns how it ended; an exit code other
// than zero is no error. The error is ErrRebooted when the machine rebooted
// meanwhile, which for "reboot" is what one wants.
//
// A machine that has hung answers nothing; after run.Timeout and some patience more
// that is an error too.
func (m *VM) Run(ctx context.Context, run guest.Run) (guest.Exit, error) {
	if run.Timeout <= 0 {
		run.Timeout = time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, run.Timeout+30*time.Second, ErrNoAnswer)
	defer cancel()
	resp, err := m.client.do(ctx, guest.Request{Run: &run})
	if err != nil {
		return guest.Exit{}, fmt.Errorf("run %q in %s: %w", run.Argv, m.cfg.Name, err)
	}
	if resp.Exit == nil {
		return guest.Exit{}, fmt.Errorf("run %q in %s: the guest answered without an exit", run.Argv, m.cfg.Name)
	}
	return *resp.Exit, nil
}

// Put writes content to a file in the guest.
func (m *VM) Put(ctx context.Context, path string, mode uint32, content io.Reader) error {
	buf := make([]byte, guest.ChunkSize)
	for offset := int64(0); ; {
		n, err := io.ReadFull(content, buf)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("put %s: %w", path, err)
		}
		if n > 0 || offset == 0 {
			part := guest.Put{Path: path, Mode: mode, Offset: offset, Data: buf[:n]}
			if _, err := m.do(ctx, guest.Request{Put: &part}); err != nil {
				return fmt.Errorf("put %s: %w", path, err)
			}
		}
		if last {
			return nil
		}
		offset += int64(n)
	}
}

// Get reads a file of the guest.
func (m *VM) Get(ctx context.Context, path string) ([]byte, error) {
	var content []byte
	for {
		resp, err := m.do(ctx, guest.Request{Get: &guest.Get{Path: path, Offset: int64(len(content))}})
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", path, err)
		}
		content = append(content, resp.Data...)
		if resp.EOF {
			return content, nil
		}
	}
}

// do is for requests that the guest answers at once, if it answers at all.
func (m *VM) do(ctx context.Context, req guest.Request) (guest.Response, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, ErrNoAnswer)
	defer cancel()
	return m.client.do(ctx, req)
}
