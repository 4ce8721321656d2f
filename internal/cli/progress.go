package cli

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// patience is how long nothing is shown: what ends sooner needs no comment.
	patience = 2 * time.Second
	// frame is how long one picture of the spinner stands.
	frame = 120 * time.Millisecond
)

// Progress tells the person who waits what is going on, on Err: a spinner with
// the time, or a bar when a total is known, on a terminal; a line for each step in
// a pipe; nothing when Quiet, and nothing in the first two seconds.
type Progress struct {
	s    *Streams
	stop chan struct{}
	done sync.WaitGroup

	mu          sync.Mutex
	step        string
	part, total int64
	started     time.Time
	shown       bool // the patience is over
	told        string
}

// Progress starts telling of step. End it with Stop.
func (s *Streams) Progress(step string) *Progress {
	p := &Progress{s: s, step: step, started: time.Now(), stop: make(chan struct{})}
	if !s.Quiet {
		p.done.Go(p.run)
	}
	return p
}

// Step says what is going on now. The bar of the step before is gone.
func (p *Progress) Step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.part, p.total = fmt.Sprintf(format, args...), 0, 0
	p.tell()
}

// Part says how many bytes of total are done.
func (p *Progress) Part(part, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part, p.total = part, total
}

// Stop ends it and clears the line it used. It may be called twice.
func (p *Progress) Stop() {
	p.mu.Lock()
	select {
	case <-p.stop:
	default:
		close(p.stop)
	}
	p.mu.Unlock()
	p.done.Wait()
}

func (p *Progress) run() {
	select {
	case <-p.stop:
		return
	case <-time.After(patience):
	}
	p.mu.Lock()
	p.shown = true
	p.tell()
	p.mu.Unlock()
	if !p.s.ErrTerminal {
		return
	}
	tick := time.NewTicker(frame)
	defer tick.Stop()
	for i := 0; ; i++ {
		p.mu.Lock()
		fmt.Fprint(p.s.Err, "\r", p.line(i), "\x1b[K")
		p.mu.Unlock()
		select {
		case <-p.stop:
			fmt.Fprint(p.s.Err, "\r\x1b[K")
			return
		case <-tick.C:
		}
	}
}

// tell writes the step as a line where no terminal shows it. Callers hold mu.
func (p *Progress) tell() {
	if p.shown && !p.s.ErrTerminal && p.told != p.step {
		p.told = p.step
		fmt.Fprintf(p.s.Err, "%s ...\n", p.step)
	}
}

// line is the i-th picture. Callers hold mu.
func (p *Progress) line(i int) string {
	const bar = 24
	spin := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	took := int(time.Since(p.started) / time.Second)
	if p.total <= 0 {
		return fmt.Sprintf("%c %s (%d s)", spin[i%len(spin)], p.step, took)
	}
	full := int(min(p.part, p.total) * bar / p.total)
	return fmt.Sprintf("%s [%s%s] %s of %s", p.step, strings.Repeat("#", full), strings.Repeat(".", bar-full), Bytes(p.part), Bytes(p.total))
}
