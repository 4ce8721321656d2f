package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"livepatch"
)

// right is who may call a route.
type right string

const (
	// everybody needs no credential; what is in the body may have to be one.
	everybody right = "everybody"
	// machines is any enrolled machine.
	machines right = "machine"
	// operators are those of the operators table.
	operators right = "operator"
	// local is everybody on this very host, and operators.
	local right = "local"
)

// route is a row of the table: what is asked, who may, how much they may send and
// how long it may take.
type route struct {
	pattern string
	right   right
	// body is the most bytes a request may have.
	body int64
	// time bounds reading the request and writing the answer; 0 is no bound.
	time   time.Duration
	handle func(http.ResponseWriter, *http.Request, caller) error
}

const (
	kib = 1 << 10
	mib = 1 << 20

	quick = 30 * time.Second
	long  = 15 * time.Minute
)

// routes is every route of the server. Rights are nowhere else.
func (s *Server) routes() []route {
	return []route{
		{"GET /{$}", everybody, 0, quick, s.index},
		{"GET /healthz", everybody, 0, quick, s.healthy},
		{"GET /readyz", everybody, 0, quick, s.ready},
		{"GET /metrics", local, 0, quick, s.showMetrics},
		{"GET /stream/{name...}", everybody, 0, long, s.streamFile},
		{"GET /v1/info", everybody, 0, quick, s.info},
		{"POST /v1/machines", everybody, 16 * kib, quick, s.enrol},

		{"POST /v1/check-in", machines, mib, quick, s.checkIn},
		{"GET /v1/events", machines, 0, 0, s.events},
		{"DELETE /v1/machine", machines, kib, quick, s.leave},

		{"GET /v1/accounts", operators, 0, quick, s.listAccounts},
		{"POST /v1/accounts", operators, 16 * kib, quick, s.createAccount},
		{"GET /v1/tokens", operators, 0, quick, s.listTokens},
		{"POST /v1/tokens", operators, 16 * kib, quick, s.createToken},
		{"DELETE /v1/tokens/{id}", operators, kib, quick, s.revokeToken},
		{"GET /v1/machines", operators, 0, quick, s.listMachines},
		{"GET /v1/machines/{id}", operators, 0, quick, s.showMachine},
		{"PUT /v1/machines/{id}/tier", operators, kib, quick, s.setTier},
		{"DELETE /v1/machines/{id}", operators, kib, quick, s.removeMachine},
		{"GET /v1/patches", operators, 0, quick, s.listPatches},
		{"GET /v1/patches/{release}/{arch}/{version}", operators, 0, quick, s.showPatch},
		{"GET /v1/patches/{release}/{arch}/{version}/health", operators, 0, quick, s.patchHealth},
		{"GET /v1/rollouts", operators, 0, quick, s.listRollouts},
		{"GET /v1/rollouts/{id}", operators, 0, quick, s.showRollout},
		{"POST /v1/rollouts/{id}/{verb}", operators, 16 * kib, quick, s.operateRollout},
		{"PUT /v1/plans/{release}/{arch}/{version}", operators, 16 * kib, quick, s.planRollout},
		{"GET /v1/policies", operators, 0, quick, s.listPolicies},
		{"GET /v1/policies/{name}", operators, 0, quick, s.showPolicy},
		{"PUT /v1/policies/{name}", operators, 64 * kib, quick, s.setPolicy},
		{"PUT /v1/blobs/{sha256}", operators, livepatch.MaxArchiveSize, long, s.putBlob},
		{"POST /v1/publications", operators, 64 * mib, long, s.publish},
		{"GET /v1/audit", operators, 0, quick, s.listAudit},
	}
}

// guard does for every route what its row says, and logs and counts it.
func (s *Server) guard(r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		start := s.Now()
		answer := &answer{ResponseWriter: w}
		who, err := s.mayCall(r, req)
		if err == nil {
			err = bound(r, answer)
		}
		if err == nil {
			req.Body = http.MaxBytesReader(answer, req.Body, r.body)
			err = call(r, answer, req, who)
		}
		if err != nil && answer.status == 0 {
			s.problem(answer, req, err)
		}
		s.account(r, req, who, answer.status, s.Now().Sub(start), err)
	})
}

// call runs the handler. A panic is a failure of this request only.
func call(r route, w http.ResponseWriter, req *http.Request, who caller) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return r.handle(w, req, who)
}

// mayCall finds out who calls and holds it against the route's right.
func (s *Server) mayCall(r route, req *http.Request) (caller, error) {
	switch r.right {
	case everybody:
		return caller{}, nil
	case local:
		if !s.BehindProxy && isLoopback(req.RemoteAddr) {
			return caller{kind: local, name: "this host"}, nil
		}
		return s.callers.find(req, operators, s.Store.OperatorByCredential)
	case machines:
		return s.callers.find(req, machines, s.Store.MachineByCredential)
	case operators:
		return s.callers.find(req, operators, s.Store.OperatorByCredential)
	}
	return caller{}, fmt.Errorf("route %s has no right", r.pattern)
}

// bound sets the deadlines of this request; the connection's own are for requests
// of which nothing is known yet.
func bound(r route, w http.ResponseWriter) error {
	var at time.Time
	if r.time > 0 {
		at = time.Now().Add(r.time)
	}
	ctl := http.NewResponseController(w)
	if err := errors.Join(ctl.SetReadDeadline(at), ctl.SetWriteDeadline(at)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("bound the time of a request: %w", err)
	}
	return nil
}

// answer remembers the status for log and metrics.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// account counts and logs one request. Paths have no secrets in them; bodies and
// headers are never logged.
func (s *Server) account(r route, req *http.Request, who caller, status int, took time.Duration, err error) {
	s.metrics.request(r.pattern, status, took)
	attrs := []any{"route", r.pattern, "path", req.URL.Path, "status", status, "took", took, "peer", s.peer(req)}
	if who.name != "" {
		attrs = append(attrs, string(who.kind), who.name)
	}
	switch {
	case err != nil && status >= 500 && !errors.Is(err, context.Canceled):
		s.Log.Error("request failed", append(attrs, "err", err)...)
	case err != nil && status != http.StatusNotFound:
		s.Log.Info("request refused", append(attrs, "err", err)...)
	default: // asking for what is not there yet is part of following the stream
		s.Log.Debug("request", attrs...)
	}
}
