package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// server answers the requests of one port.
type server struct {
	procs procTable

	write sync.Mutex
	out   io.Writer
}

// Serve says hello and answers requests from port until reading fails; requests
// are handled side by side. It returns the read error.
func Serve(port io.ReadWriter, hello Hello) error {
	s := &server{out: port, procs: procTable{cancel: map[uint64]context.CancelFunc{}}}
	// The empty line ends whatever an earlier boot had begun to say.
	if _, err := port.Write([]byte("\n")); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}
	s.reply(Response{Hello: &hello})

	in := bufio.NewReaderSize(port, 1<<20)
	for {
		line, err := readLine(in)
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		var req Request
		if json.Unmarshal(line, &req) != nil || req.ID == 0 {
			continue
		}
		if req.Put != nil {
			// In order: the parts of a file follow each other.
			s.reply(s.handle(req))
			continue
		}
		go func() { s.reply(s.handle(req)) }()
	}
}

// readLine reads to the next newline. Lines longer than MaxLine come back empty.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line) <= MaxLine {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if len(line) > MaxLine {
			line = nil
		}
		return bytes.TrimSpace(line), err
	}
}

func (s *server) reply(r Response) {
	b, err := json.Marshal(r)
	if err != nil {
		return
	}
	s.write.Lock()
	defer s.write.Unlock()
	s.out.Write(append(b, '\n')) //nolint:errcheck // the reader's error ends Serve
}

func (s *server) handle(req Request) Response {
	resp := Response{ID: req.ID}
	var err error
	switch {
	case req.Run != nil:
		resp.Exit, err = s.run(req.ID, *req.Run)
	case req.Put != nil:
		err = put(*req.Put)
	case req.Get != nil:
		resp.Data, resp.EOF, err = get(*req.Get)
	case req.Kill != nil:
		s.procs.kill(req.Kill.ID)
	default:
		err = errors.New("request asks for nothing this guest knows")
	}
	if err != nil {
		msg := err.Error()
		resp.Error = &msg
	}
	return resp
}

// procTable holds the commands that run, so that one can be ended by its id.
type procTable struct {
	mu     sync.Mutex
	cancel map[uint64]context.CancelFunc
}

func (t *procTable) add(id uint64, cancel context.CancelFunc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel[id] = cancel
}

func (t *procTable) remove(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.cancel, id)
}

func (t *procTable) kill(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cancel := t.cancel[id]; cancel != nil {
		cancel()
	}
}

func (s *server) run(id uint64, r Run) (*Exit, error) {
	if len(r.Argv) == 0 {
		return nil, errors.New("run: no program named")
	}
	if r.Timeout <= 0 {
		r.Timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), r.Timeout)
	defer cancel()
	s.procs.add(id, cancel)
	defer s.procs.remove(id)

	stdout, stderr := limitedBuffer{max: MaxOutput}, limitedBuffer{max: MaxOutput}
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	cmd.Stdin = bytes.NewReader(r.Stdin)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), r.Env...)
	cmd.Dir = r.Dir
	// A group of its own, so that the whole family ends with it; and an end to
	// waiting for pipes that a daemon left behind holds open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second

	start := time.Now()
	err := cmd.Run()
	exit := &Exit{
		Stdout: stdout.buf.Bytes(), Stderr: stderr.buf.Bytes(),
		Duration: time.Since(start), TimedOut: ctx.Err() != nil,
	}
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		exit.Code = failed.ExitCode()
	case errors.Is(err, exec.ErrWaitDelay):
		exit.Code = cmd.ProcessState.ExitCode()
	case err != nil && !exit.TimedOut:
		return nil, fmt.Errorf("run %s: %w", r.Argv[0], err)
	}
	return exit, nil
}

// limitedBuffer keeps the first max bytes and swallows the rest.
type limitedBuffer struct {
	buf bytes.Buffer
	max int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.buf.Write(p[:min(len(p), b.max-b.buf.Len())])
	return len(p), nil
}

func put(p Put) error {
	flags := os.O_WRONLY | os.O_CREATE
	if p.Offset == 0 {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(p.Path, flags, os.FileMode(p.Mode))
	if err != nil {
		return fmt.Errorf("put: %w", err)
	}
	_, err = f.WriteAt(p.Data, p.Offset)
	return errors.Join(err, f.Chmod(os.FileMode(p.Mode)), f.Close())
}

func get(g Get) (data []byte, eof bool, err error) {
	f, err := os.Open(g.Path)
	if err != nil {
		return nil, false, fmt.Errorf("get: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	data = make([]byte, ChunkSize)
	// Files of /proc and /sys have no size and no pread to rely on for one; the
	// end is where a read says so.
	if _, err := f.Seek(g.Offset, io.SeekStart); err != nil {
		return nil, false, fmt.Errorf("get: %w", err)
	}
	n, err := io.ReadFull(f, data)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return data[:n], true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("get: %w", err)
	}
	return data[:n], false, nil
}
