package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// show is what the demo prints.
type show struct {
	out   io.Writer
	start time.Time

	mu    sync.Mutex
	steps []step
}

// step is a line of the summary.
type step struct {
	name  string
	took  time.Duration
	proof string
}

// note prints a line of progress.
func (s *show) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "%6.1f s  %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

// text prints what a program said, indented.
func (s *show) text(command, output string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "          %s\n", command)
	for line := range strings.Lines(strings.TrimRight(output, "\n")) {
		fmt.Fprintf(s.out, "          | %s\n", strings.TrimRight(line, "\n"))
	}
}

// step does one thing and keeps for the summary how long it took and what was
// seen of it.
func (s *show) step(name string, do func() (proof string, err error)) error {
	s.note("%s", name)
	start := time.Now()
	proof, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, time.Since(start), proof})
	return nil
}

// summary prints every step with its time and its proof.
func (s *show) summary(err error) {
	fmt.Fprintf(s.out, "\nSummary\n")
	for _, st := range s.steps {
		fmt.Fprintf(s.out, "  ok   %6.1f s  %-50s %s\n", st.took.Seconds(), st.name, st.proof)
	}
	if err != nil {
		fmt.Fprintf(s.out, "  FAIL           %v\n", err)
	}
	fmt.Fprintf(s.out, "  all  %6.1f s\n", time.Since(s.start).Seconds())
}
