package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/api"
)

// CheckedIn is what came of a check-in.
type CheckedIn struct {
	// Machine is as it is after the check-in.
	Machine api.Machine
	// Grant is new, or the one given before when that is still good; nil when the
	// machine is to stay as it is.
	Grant *livepatch.Grant
	// Reason is a sentence why there is no grant, or empty.
	Reason string
	// Acknowledged are the ids of the reports in the request: all are stored.
	Acknowledged []string
	// Catalogue is that of the machine's kernel; nil when there is none.
	Catalogue *livepatch.Catalogue
}

// change is what a check-in has to write. The zero value is nothing.
type change struct {
	state   *api.CheckInRequest
	version livepatch.Version
	reports []livepatch.Report
	grant   *livepatch.Grant
	// rollout is the id of the one that the grant is of, or empty.
	rollout string
}

func (c change) empty() bool { return c.state == nil && len(c.reports) == 0 && c.grant == nil }

// CheckIn takes in how a machine is and what it reports, and asks the rule what it
// is to do, in one transaction. A check-in that changes nothing writes nothing:
// the time it was seen at is kept in memory until Flush. CodeUnauthorized when the
// machine has been removed.
func (s *Store) CheckIn(ctx context.Context, id string, req api.CheckInRequest, decide Decide) (CheckedIn, error) {
	now := s.now()
	var (
		out  CheckedIn
		todo change
	)
	err := s.read(ctx, func(tx *sql.Tx) (err error) {
		out, todo, err = s.checkIn(ctx, tx, now, id, req, decide)
		return err
	})
	if err != nil {
		return CheckedIn{}, err
	}
	if todo.empty() {
		s.sawOnly(id, now)
		return out, nil
	}
	err = s.write(ctx, func(tx *sql.Tx) (err error) {
		if out, todo, err = s.checkIn(ctx, tx, now, id, req, decide); err != nil {
			return err
		}
		return s.apply(ctx, tx, now, out.Machine, todo)
	})
	if err != nil {
		return CheckedIn{}, err
	}
	return out, nil
}

// checkIn works out answer and change from the database's state; it writes
// nothing.
func (s *Store) checkIn(ctx context.Context, tx *sql.Tx, now time.Time, id string, req api.CheckInRequest, decide Decide) (out CheckedIn, todo change, err error) {
	m, err := s.scanMachine(tx.QueryRowContext(ctx, selectMachines+`WHERE m.id = $1`, id).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return out, todo, livepatch.Errorf(livepatch.CodeUnauthorized, "this machine was removed on the server; enable it again with a token")
	case err != nil:
		return out, todo, fmt.Errorf("find machine: %w", err)
	}
	for _, r := range req.Reports {
		out.Acknowledged = append(out.Acknowledged, r.ID)
	}
	if todo.reports, err = newReports(ctx, tx, id, req.Reports); err != nil {
		return out, todo, err
	}
	if out.Catalogue, err = s.catalogue(ctx, tx, req.Kernel.Target()); err != nil {
		return out, todo, err
	}
	todo.state, todo.version = newState(m, req, now), running(req.Loaded)
	out.Machine = with(m, req, todo.version, now)
	facts, err := s.gather(ctx, tx, now, out, req, todo.reports)
	if err != nil {
		return out, todo, err
	}
	d := decide(facts)
	if d.Action == "" {
		out.Reason = d.Reason
		return out, todo, nil
	}
	out.Grant, err = openGrant(ctx, tx, id, req, d, now)
	if err == nil && out.Grant == nil {
		out.Grant = &livepatch.Grant{ID: newGrantID(), Action: d.Action, Version: d.Version, Expires: d.Expires.UTC(), Reason: d.Reason}
		todo.grant, todo.rollout = out.Grant, d.Rollout
	}
	return out, todo, err
}

// with is the machine after the check-in.
func with(m api.Machine, req api.CheckInRequest, version livepatch.Version, now time.Time) api.Machine {
	m.Kernel, m.PatchState, m.CheckState = req.Kernel, req.PatchState, req.CheckState
	m.Loaded, m.Suspects, m.Problem = req.Loaded, req.Suspects, req.Problem
	m.BootID, m.BootTime, m.AgentVersion = req.BootID, req.BootTime, req.AgentVersion
	m.Hardware, m.Virt = req.Hardware, req.Virt
	m.Version, m.LastSeen = version, now
	return m
}

// newState is the state to store, or nil when it is the stored one. A boot's time
// is computed from the uptime and trembles; within one boot it is no change.
func newState(m api.Machine, req api.CheckInRequest, now time.Time) *api.CheckInRequest {
	req.Reports = nil
	if req.BootID == m.BootID {
		req.BootTime = m.BootTime
	}
	before, err1 := json.Marshal(with(m, api.CheckInRequest{
		Kernel: m.Kernel, BootID: m.BootID, BootTime: m.BootTime, AgentVersion: m.AgentVersion, CheckState: m.CheckState,
		PatchState: m.PatchState, Loaded: m.Loaded, Suspects: m.Suspects, Problem: m.Problem, Hardware: m.Hardware, Virt: m.Virt,
	}, m.Version, now))
	after, err2 := json.Marshal(with(m, req, running(req.Loaded), now))
	if err1 == nil && err2 == nil && slices.Equal(before, after) {
		return nil
	}
	return &req
}

// running is the newest enabled version of ours.
func running(loaded []livepatch.LoadedPatch) livepatch.Version {
	var v livepatch.Version
	for _, p := range loaded {
		if p.Enabled && p.Version.Compare(v) > 0 {
			v = p.Version
		}
	}
	return v
}

// newReports are those that are not stored yet.
func newReports(ctx context.Context, tx *sql.Tx, machine string, reports []livepatch.Report) ([]livepatch.Report, error) {
	var fresh []livepatch.Report
	for _, r := range reports {
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM reports WHERE machine_id = $1 AND id = $2`, machine, r.ID).Scan(&n); err != nil {
			return nil, fmt.Errorf("look up report: %w", err)
		}
		if n == 0 && !slices.ContainsFunc(fresh, func(f livepatch.Report) bool { return f.ID == r.ID }) {
			fresh = append(fresh, r)
		}
	}
	return fresh, nil
}

func (s *Store) gather(ctx context.Context, tx *sql.Tx, now time.Time, out CheckedIn, req api.CheckInRequest, fresh []livepatch.Report) (Facts, error) {
	m := out.Machine
	f := Facts{Now: now, Machine: m.ID, Account: m.Account, Kernel: req.Kernel, BootID: req.BootID,
		Catalogue: out.Catalogue, Loaded: req.Loaded, Suspects: req.Suspects, Retry: req.Retry, RetrySuspect: req.RetrySuspect}
	err := tx.QueryRowContext(ctx, `SELECT a.plan, m.tier FROM machines m JOIN accounts a ON a.id = m.account_id WHERE m.id = $1`, m.ID).Scan(&f.Plan, &f.Tier)
	if err != nil {
		return f, fmt.Errorf("find account: %w", err)
	}
	rows, err := tx.QueryContext(ctx, `SELECT body, received FROM reports WHERE seq IN
		(SELECT max(seq) FROM reports WHERE machine_id = $1 AND release = $2 AND arch = $3 GROUP BY version, kind) ORDER BY seq`,
		m.ID, req.Kernel.Release, req.Kernel.Arch)
	f.Attempts, err = collect(rows, err, func(scan func(...any) error) (Attempt, error) {
		var (
			body     string
			received int64
			r        livepatch.Report
		)
		if err := scan(&body, &received); err != nil {
			return Attempt{}, err
		}
		err := json.Unmarshal([]byte(body), &r)
		return attempt(r, fromMillis(received)), err
	})
	if err != nil {
		return f, fmt.Errorf("read attempts: %w", err)
	}
	for _, r := range fresh {
		f.Attempts = slices.DeleteFunc(f.Attempts, func(a Attempt) bool { return a.Version == r.Version && a.Kind == r.Kind })
		f.Attempts = append(f.Attempts, attempt(r, now))
	}
	f.Candidates, err = s.candidates(ctx, tx, now, m.ID, out.Catalogue)
	return f, err
}

func attempt(r livepatch.Report, received time.Time) Attempt {
	return Attempt{Version: r.Version, Kind: r.Kind, Code: r.Code, BootID: r.BootID, Received: received}
}

// openGrant returns the machine's latest grant when it says the same as d, nothing
// was reported under it, no halt made it void and more than half of its time is left; else nil.
func openGrant(ctx context.Context, tx *sql.Tx, machine string, req api.CheckInRequest, d Decision, now time.Time) (*livepatch.Grant, error) {
	var (
		g                 livepatch.Grant
		version           string
		expires, reported int64
		rollout           string
		k                 livepatch.KernelTarget
	)
	err := tx.QueryRowContext(ctx, `SELECT id, action, version, reason, expires, reported + voided, release, arch, rollout_id FROM grants WHERE machine_id = $1 ORDER BY seq DESC LIMIT 1`, machine).
		Scan(&g.ID, &g.Action, &version, &g.Reason, &expires, &reported, &k.Release, &k.Arch, &rollout)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("find grant: %w", err)
	}
	g.Expires = fromMillis(expires)
	same := g.Action == d.Action && rollout == d.Rollout && version == d.Version.String() && k == req.Kernel.Target()
	used := reported != 0 || slices.ContainsFunc(req.Reports, func(r livepatch.Report) bool { return r.Grant == g.ID })
	if !same || used || g.Expires.Sub(now) <= d.Expires.Sub(now)/2 {
		return nil, nil
	}
	g.Version = d.Version
	return &g, nil
}

func newGrantID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// apply writes what a check-in changes.
func (s *Store) apply(ctx context.Context, tx *sql.Tx, now time.Time, m api.Machine, todo change) error {
	if todo.state != nil {
		state, err := json.Marshal(todo.state)
		if err != nil {
			return fmt.Errorf("encode state: %w", err)
		}
		_, err = tx.ExecContext(ctx, `UPDATE machines SET state = $2, release = $3, arch = $4, version = $5, hardware = $6, virt = $7 WHERE id = $1`,
			m.ID, string(state), todo.state.Kernel.Release, todo.state.Kernel.Arch, todo.version.String(), todo.state.Hardware, todo.state.Virt)
		if err != nil {
			return fmt.Errorf("write state: %w", err)
		}
	}
	for _, r := range todo.reports {
		if err := addReport(ctx, tx, now, m, r); err != nil {
			return err
		}
	}
	if g := todo.grant; g != nil {
		_, err := tx.ExecContext(ctx, `INSERT INTO grants (id, machine_id, release, arch, action, version, reason, created, expires, reported, rollout_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10)`,
			g.ID, m.ID, m.Kernel.Release, m.Kernel.Arch, g.Action, g.Version.String(), g.Reason, millis(now), millis(g.Expires), todo.rollout)
		if err != nil {
			return fmt.Errorf("add grant: %w", err)
		}
		if err := expose(ctx, tx, now, todo.rollout, m.ID); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `UPDATE machines SET last_seen = $2 WHERE id = $1`, m.ID, millis(now)); err != nil {
		return fmt.Errorf("write last-seen time: %w", err)
	}
	return nil
}

// addReport stores a report under the kernel its grant was for, else under the one
// that it names, else under the machine's. Bad news of a livepatch goes into the
// audit log; that a machine without one crashes is no act of anybody's.
func addReport(ctx context.Context, tx *sql.Tx, now time.Time, m api.Machine, r livepatch.Report) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	k := m.Kernel.Target()
	if r.Kernel != (livepatch.KernelTarget{}) {
		k = r.Kernel
	}
	err = tx.QueryRowContext(ctx, `UPDATE grants SET reported = $3 WHERE id = $1 AND machine_id = $2 RETURNING release, arch`, r.Grant, m.ID, millis(now)).Scan(&k.Release, &k.Arch)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("use up grant: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO reports (machine_id, id, release, arch, version, kind, body, received, signature, loaded) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9,
		coalesce((SELECT loaded FROM trials WHERE machine_id = $1 AND rollout_id = (SELECT id FROM rollouts WHERE release = $3 AND arch = $4 AND version = $5)), 0))`,
		m.ID, r.ID, k.Release, k.Arch, r.Version.String(), r.Kind, string(body), millis(now), r.Signature)
	if err != nil {
		return fmt.Errorf("add report: %w", err)
	}
	if err := errors.Join(tried(ctx, tx, now, m.ID, k, r), dropOldReports(ctx, tx, m.ID)); err != nil {
		return err
	}
	switch {
	case r.Version.IsZero() && r.Grant == "", r.Kind == livepatch.ReportApplied, r.Kind == livepatch.ReportHealthy, r.Kind == livepatch.ReportUnloaded:
		return nil
	}
	return audit(ctx, tx, now, "machine "+m.ID, "report."+string(r.Kind), fmt.Sprintf("%s %s %s", k.Release, k.Arch, r.Version), cmp.Or(r.Detail, string(r.Code)))
}

// reportsKept is how many reports of one machine are kept, so that no machine can
// fill the disk.
const reportsKept = 500

func dropOldReports(ctx context.Context, tx *sql.Tx, machine string) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM reports WHERE machine_id = $1 AND seq <=
		(SELECT seq FROM reports WHERE machine_id = $1 ORDER BY seq DESC LIMIT 1 OFFSET $2)`, machine, reportsKept)
	if err != nil {
		return fmt.Errorf("drop old reports: %w", err)
	}
	return nil
}
