package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// rolloutCache keeps rollouts decoded as long as their revision stays: they are
// asked for with every check-in and change a few times a day.
type rolloutCache struct {
	mu   sync.Mutex
	kept map[string]keptRollout
}

type keptRollout struct {
	revision string
	rollout  *rollout.Rollout
}

// rolloutsKept bounds the memory.
const rolloutsKept = 5000

func (c *rolloutCache) decode(id, revision, body string) (*rollout.Rollout, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.kept[id]; k.revision == revision {
		return k.rollout, nil
	}
	r := new(rollout.Rollout)
	if err := json.Unmarshal([]byte(body), r); err != nil {
		return nil, err
	}
	if c.kept == nil || len(c.kept) >= rolloutsKept {
		c.kept = map[string]keptRollout{}
	}
	c.kept[id] = keptRollout{revision, r}
	return r, nil
}

// candidates are the rollouts of all livepatches of the catalogue's kernel, as they
// are in this transaction. A patch from before there were rollouts is open to
// everybody.
func (s *Store) candidates(ctx context.Context, tx *sql.Tx, now time.Time, machine string, c *livepatch.Catalogue) ([]rollout.Candidate, error) {
	if c == nil {
		return nil, nil
	}
	type entry struct {
		r        *rollout.Rollout
		progress rollout.Progress
	}
	rows, err := tx.QueryContext(ctx, `SELECT id, revision, body, progress FROM rollouts WHERE release = $1 AND arch = $2`, c.Kernel.Release, c.Kernel.Arch)
	found, err := collect(rows, err, func(scan func(...any) error) (e entry, err error) {
		var id, revision, body, progress string
		if err := scan(&id, &revision, &body, &progress); err != nil {
			return e, err
		}
		if e.r, err = s.rollouts.decode(id, revision, body); err != nil {
			return e, err
		}
		return e, json.Unmarshal([]byte(progress), &e.progress)
	})
	if err != nil {
		return nil, fmt.Errorf("read rollouts: %w", err)
	}
	byVersion := make(map[livepatch.Version]entry, len(found))
	for _, e := range found {
		byVersion[e.r.Version] = e
	}
	out := make([]rollout.Candidate, 0, len(c.Patches))
	for _, p := range c.Patches {
		e, ok := byVersion[p.Version]
		if !ok {
			open := rollout.Open(c.Kernel, p.Version, p.Published)
			e.r = &open
		}
		if p.Withdrawn != nil && e.r.State != rollout.Withdrawn {
			gone := *e.r
			gone.State, gone.Reason = rollout.Withdrawn, p.Withdrawn.Reason
			e.r = &gone
		}
		if err := pending(ctx, tx, now, machine, e.r, &e.progress); err != nil {
			return nil, err
		}
		out = append(out, rollout.Candidate{Rollout: e.r, BuildIDs: p.BuildIDs, Progress: e.progress})
	}
	return out, nil
}

// pending counts the machines that are trying the patch, other than the one that
// asks: that count must not lag, or the limit would not hold.
func pending(ctx context.Context, tx *sql.Tx, now time.Time, machine string, r *rollout.Rollout, p *rollout.Progress) error {
	if !r.State.Moving() || r.PendingLimit(*p, now) < 0 {
		return nil
	}
	err := tx.QueryRowContext(ctx, `SELECT count(*) FROM trials WHERE rollout_id = $1 AND outcome = '' AND granted > $2 AND machine_id <> $3`,
		r.ID, millis(now.Add(-time.Duration(r.Policy.Watch))), machine).Scan(&p.Pending)
	if err != nil {
		return fmt.Errorf("count pending grants: %w", err)
	}
	return nil
}

// expose notes that a machine may load the patch of a rollout now.
func expose(ctx context.Context, tx *sql.Tx, now time.Time, rolloutID, machine string) error {
	if rolloutID == "" {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO trials (rollout_id, machine_id, granted, loaded, outcome) VALUES ($1, $2, $3, 0, '')
		ON CONFLICT (rollout_id, machine_id) DO UPDATE SET granted = excluded.granted, loaded = 0, outcome = ''`, rolloutID, machine, millis(now))
	if err != nil {
		return fmt.Errorf("note the trial: %w", err)
	}
	return nil
}

// tried notes what a report says of its machine's trial, if it had one.
func tried(ctx context.Context, tx *sql.Tx, now time.Time, machine string, k livepatch.KernelTarget, r livepatch.Report) error {
	const of = ` WHERE machine_id = $1 AND rollout_id = (SELECT id FROM rollouts WHERE release = $2 AND arch = $3 AND version = $4)`
	args := []any{machine, k.Release, k.Arch, r.Version.String()}
	var err error
	switch r.Kind {
	case livepatch.ReportApplied:
		_, err = tx.ExecContext(ctx, `UPDATE trials SET loaded = $5, outcome = CASE outcome WHEN 'healthy' THEN 'healthy' ELSE '' END`+of, append(args, millis(now))...)
	case livepatch.ReportFailed, livepatch.ReportStuck, livepatch.ReportUnloaded:
		_, err = tx.ExecContext(ctx, `UPDATE trials SET outcome = $5`+of, append(args, string(r.Kind))...)
	case livepatch.ReportRebooted, livepatch.ReportOopsed, livepatch.ReportWarned:
		_, err = tx.ExecContext(ctx, `UPDATE trials SET outcome = 'harmed'`+of, args...)
	}
	if err != nil {
		return fmt.Errorf("note the trial's outcome: %w", err)
	}
	return nil
}
