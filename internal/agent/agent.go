package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/localapi"
	"livepatch/internal/stream"
)

// Options are what an Agent is made of. All fields are needed unless they say
// otherwise.
type Options struct {
	// StateDir is /var/lib/livepatch; it is made when missing.
	StateDir string
	// ConfigFile is /etc/livepatch/livepatch.yaml; it may be missing.
	ConfigFile string
	// TrustFile is a first root that came with the package; it may be missing.
	TrustFile string
	Kernel    *kernel.System
	// HTTP makes the client that reaches the server and its stream; nil is NewHTTP.
	HTTP func(HTTPOptions) (*http.Client, error)
	// Stopping tells that the machine is shutting down in an orderly way.
	Stopping func(context.Context) bool
	// PreviousLog is the kernel log of the boot before, for evidence; may be nil.
	PreviousLog func(context.Context) string
	// Admin tells whether a local user may change things; nil is root only.
	Admin func(uid uint32) bool
	// Version is this program's.
	Version string
	// Random makes credentials and ids: crypto/rand.Reader.
	Random io.Reader
	// Jitter is the source that spreads the checks of many machines.
	Jitter rand.Source
	Log    *slog.Logger
	// Level is set to what the configuration says; may be nil.
	Level *slog.LevelVar
	// Crash is called with the name of each point at which a crash must leave a
	// consistent state; nil outside tests.
	Crash func(point string)
}

// Agent is the daemon. Make it with New, then Start, then Run.
type Agent struct {
	o      Options
	dir    *dir
	spread *spread

	// turn serialises everything that changes something; a channel, so that
	// waiting for it can be given up.
	turn chan struct{}
	// All below is touched only by who has the turn.
	settings  settings
	override  settings
	facts     kernel.Facts
	identity  *identity
	memory    memory
	journal   *journal
	catalogue *livepatch.Catalogue
	reader    *stream.Reader
	http      *http.Client
	clock     serverClock
	problems  problems
	next      time.Time
	// failures counts checks that failed since one did not.
	failures int
	applying livepatch.PatchState
	// failedVersion is the version that the problem in areaApply is about.
	failedVersion livepatch.Version

	// wish is what a person asked for, until the server has been told.
	wish *localapi.RefreshRequest
	// asked is what heard was when the server was last asked.
	asked uint64

	// heard counts the events of the server that asked for a check.
	heard atomic.Uint64
	// status is what the socket answers; everybody may load it.
	status atomic.Pointer[localapi.Status]
	shown  atomic.Pointer[localapi.Config]
	// kick wakes the loop; listen tells the event listener that the server changed.
	kick   chan struct{}
	listen *signal
}

// signal tells many waiters that something changed, by closing a channel.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func newSignal() *signal { return &signal{ch: make(chan struct{})} }

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}

// spread varies times, so that many machines do not act as one.
type spread struct {
	mu sync.Mutex
	r  *rand.Rand
}

// about is d, give or take a tenth.
func (s *spread) about(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return d - d/10 + time.Duration(s.r.Int64N(int64(d/5)+1))
}

// within is somewhere between 0 and d.
func (s *spread) within(d time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.r.Int64N(int64(d)))
}

// New reads configuration and state. It neither touches the kernel nor the
// network.
func New(o Options) (*Agent, error) {
	d, err := openDir(o.StateDir)
	if err != nil {
		return nil, err
	}
	if o.Admin == nil {
		o.Admin = func(uid uint32) bool { return uid == 0 }
	}
	if o.HTTP == nil {
		o.HTTP = NewHTTP
	}
	if o.Crash == nil {
		o.Crash = func(string) {}
	}
	a := &Agent{
		o: o, dir: d, spread: &spread{r: rand.New(o.Jitter)},
		turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), listen: newSignal(),
	}
	if err := a.readSettings(); err != nil {
		return nil, err
	}
	return a, a.readState()
}

// readSettings merges the administrator's file with what was set by command.
func (a *Agent) readSettings() error {
	base, err := readSettingsFile(a.o.ConfigFile)
	if err != nil {
		return err
	}
	a.override, err = readSettingsFile(a.dir.file(settingsFile))
	if err != nil {
		return err
	}
	a.applySettings(base.with(a.override))
	return nil
}

func (a *Agent) applySettings(s settings) {
	a.settings = s
	shown := s.show()
	a.shown.Store(&shown)
	if a.o.Level != nil {
		a.o.Level.Set(s.level())
	}
}

func (a *Agent) readState() error {
	var id identity
	ok, err := a.dir.readJSON(identityFile, &id)
	if err != nil {
		return err
	}
	if ok {
		a.identity = &id
	}
	if err := a.readMemory(); err != nil {
		return err
	}
	var j journal
	if ok, err = a.dir.readJSON(journalFile, &j); err != nil {
		return err
	}
	if ok {
		a.journal = &j
	}
	return nil
}

// readMemory begins with an empty memory when the kept one is damaged. Nothing is
// loaded at boot then; the server, which was told of the suspects, decides.
func (a *Agent) readMemory() error {
	_, err := a.dir.readJSON(stateFile, &a.memory)
	if !errors.Is(err, errDamaged) {
		return err
	}
	a.memory = memory{}
	aside, err := a.dir.setAside(stateFile)
	if err != nil {
		return err
	}
	a.note(areaState, livepatch.Errorf(livepatch.CodeDisk, "%s was damaged and is now %s: what was remembered on this machine is lost, its suspects too, and livepatchd began anew; look at the disk, then run 'livepatch refresh'", a.dir.file(stateFile), aside))
	return nil
}

// lock takes the turn.
func (a *Agent) lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return livepatch.Errorf(livepatch.CodeUnavailable, "livepatchd is busy with a livepatch; try again in a moment: %w", ctx.Err())
	}
}

func (a *Agent) unlock() {
	a.publish()
	<-a.turn
}

// wake makes the loop check soon.
func (a *Agent) wake() {
	select {
	case a.kick <- struct{}{}:
	default: // it is awake
	}
}

// enabled tells that the server has confirmed the enrolment.
func (a *Agent) enabled() bool { return a.identity != nil && a.identity.Enrolled }

// inspect looks at the kernel again.
func (a *Agent) inspect() error {
	f, err := a.o.Kernel.Inspect()
	if err != nil {
		return err
	}
	a.facts = f
	return nil
}

// saveMemory writes what was learnt. A full disk is a problem to show, never a
// reason to stop: what counts before a load is the journal.
func (a *Agent) saveMemory() error {
	err := a.dir.writeJSON(stateFile, &a.memory)
	a.note(areaDisk, err)
	return err
}

// saveJournal makes j the journal, on disk first; nil removes it.
func (a *Agent) saveJournal(j *journal) error {
	var err error
	if j == nil {
		err = a.dir.remove(journalFile)
	} else {
		err = a.dir.writeJSON(journalFile, j)
	}
	if err == nil {
		a.journal = j
	}
	return err
}

// randomHex is n random bytes in hex.
func (a *Agent) randomHex(n int) (string, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(a.o.Random, b); err != nil {
		return "", fmt.Errorf("read random bytes: %w", err)
	}
	return fmt.Sprintf("%x", b), nil
}

// serverClock is the server's time, carried on by this machine's clocks. Setting the
// wall clock back does not prolong a grant, and neither does a suspend, during which
// the monotonic clock stands still: the clock that moved further counts.
type serverClock struct {
	server time.Time
	taken  time.Time
}

func (c *serverClock) set(server, now time.Time) { c.server, c.taken = server, now }

// at is the server's time at the local time now.
func (c serverClock) at(now time.Time) time.Time {
	if c.taken.IsZero() {
		return now
	}
	wall := now.Round(0).Sub(c.taken.Round(0)) // Round drops the monotonic reading
	return c.server.Add(max(now.Sub(c.taken), wall))
}

// maxSkew is how far clocks may differ before it is a problem: far less than the
// shortest life of signed metadata, far more than a machine without NTP drifts in
// weeks.
const maxSkew = 30 * time.Minute

func (c serverClock) skew() error {
	if d := c.taken.Round(0).Sub(c.server); !c.taken.IsZero() && d.Abs() > maxSkew {
		return livepatch.Errorf(livepatch.CodeClock, "this machine's clock is %s off the server's (%s): set it, or signed metadata will be taken for expired or not yet valid", d.Round(time.Second), c.server.UTC().Format(time.RFC3339))
	}
	return nil
}
