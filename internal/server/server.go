// Package server answers the /v1 API and serves the signed stream. It keeps
// nothing of its own: what it knows is in its store, the stream's files are in its
// blob store, and whatever is in memory may be lost.
package server

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"livepatch"
	"livepatch/internal/blob"
	"livepatch/internal/store"
	"livepatch/internal/stream"
)

// Options is what a Server is made of. Store, Blobs and Stream are needed, the
// rest has defaults.
type Options struct {
	Store  *store.Store
	Blobs  blob.Store
	Stream *stream.Publisher
	// Log gets one line a request and every failure; slog.Default() by default.
	Log *slog.Logger
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// PublicURL is how machines reach the server; it becomes part of the commands
	// that token holders are given.
	PublicURL string
	// Version is what /v1/info says.
	Version string
	// Decide is the rule for grants; by default what the rollouts say.
	Decide store.Decide
	// KeepAlive is how long to wait until the next comment on an idle event stream;
	// it is asked each time, so that it can vary. 30 s by default, and never
	// above 60 s: clients take a silent stream for dead.
	KeepAlive func() time.Duration
	// BehindProxy tells that all requests come from a proxy on this host: who is
	// behind it is read from X-Forwarded-For, and nobody counts as this host.
	BehindProxy bool
	// EnrolPerMinute is how many enrolments one address may try; 30 by default.
	EnrolPerMinute int
	// CheckInterval is when machines check in again if nothing happens; one hour
	// by default, between a minute and a day.
	CheckInterval time.Duration
	// RolloutPolicy names the policy of patches for which the operator chose none;
	// everybody by default.
	RolloutPolicy string
	// Alarms are the ways to tell people of halts; the log is always one.
	Alarms []*Alarms
}

// Server is the service. Make it with New, serve it with Serve.
type Server struct {
	Options
	hub     hub
	callers callers
	enrols  limiter
	metrics *metrics

	// publishing is held from before a publication is written down until it is
	// complete: the stream changes one step at a time.
	publishing sync.Mutex

	// began is when this server began to hear machines, news has a value when
	// rollouts are to be looked at.
	began time.Time
	news  chan struct{}

	trustMu sync.Mutex
	trust   string
}

// New makes a server. It does no I/O yet.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Decide == nil {
		o.Decide = byRollout
	}
	if o.KeepAlive == nil {
		o.KeepAlive = func() time.Duration { return 30 * time.Second }
	}
	if o.EnrolPerMinute == 0 {
		o.EnrolPerMinute = 30
	}
	if o.CheckInterval == 0 {
		o.CheckInterval = time.Hour
	}
	s := &Server{Options: o, began: o.Now(), news: make(chan struct{}, 1)}
	s.hub = hub{machines: map[string]*subscription{}, left: map[string]time.Time{}, now: o.Now}
	s.callers = callers{now: o.Now, known: map[string]knownCaller{}}
	s.enrols = limiter{now: o.Now, every: rate.Limit(float64(o.EnrolPerMinute) / 60), burst: o.EnrolPerMinute, addresses: map[string]*rate.Limiter{}}
	s.metrics = newMetrics(func() float64 { return float64(s.hub.count()) })
	return s
}

// Handler answers all routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.Handle(r.pattern, s.guard(r))
	}
	mux.Handle("/", s.guard(route{"/", everybody, 0, quick, s.notThere}))
	return mux
}

// notThere answers what no row of the table is for.
func (s *Server) notThere(_ http.ResponseWriter, r *http.Request, _ caller) error {
	return livepatch.Errorf(livepatch.CodeNotFound, "nothing answers %s %s here", r.Method, r.URL.Path)
}
