package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

// stage makes the rollout of a patch that has just become public, under its plan
// and else under the policy of the server's choice, and starts it unless the plan
// holds it.
func (s *Store) stage(ctx context.Context, tx *sql.Tx, actor, choice string, k livepatch.KernelTarget, lp livepatch.Livepatch) error {
	v := lp.Version
	plan, err := takePlan(ctx, tx, k, lp)
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if plan.Policy == "" {
		plan.Policy = choice
	}
	p, err := policy(ctx, tx, plan.Policy)
	if err != nil {
		return err
	}
	var id [8]byte
	key := make([]byte, rollout.KeySize)
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	_, _ = rand.Read(key)
	r, err := rollout.New(hex.EncodeToString(id[:]), k, v, p, key)
	if err != nil {
		return err
	}
	now := s.now()
	_, err = tx.ExecContext(ctx, `INSERT INTO rollouts (id, release, arch, version, state, revision, body, progress, judge, judged, created, started, changed)
		VALUES ($1, $2, $3, $4, $5, '', '', '{}', '', 0, $6, 0, $6)`, r.ID, k.Release, k.Arch, v.String(), r.State, millis(now))
	if err != nil {
		return fmt.Errorf("add rollout: %w", err)
	}
	if err := putRollout(ctx, tx, r, now.UnixMilli()); err != nil {
		return err
	}
	detail := fmt.Sprintf("policy %s version %d, draw key committed as sha256:%s", p.Name, p.Version, r.Commitment())
	if err := audit(ctx, tx, now, actor, "rollout.stage", rolloutName(r), detail); err != nil || plan.Hold {
		return err
	}
	verb := "start"
	if plan.Expedite {
		verb = "expedite"
	}
	_, err = s.operate(ctx, tx, r, verb, actor, plan.Reason)
	return err
}

// rolloutName is what the audit log calls a rollout.
func rolloutName(r rollout.Rollout) string {
	return fmt.Sprintf("%s %s %s %s", r.ID, r.Kernel.Release, r.Kernel.Arch, r.Version)
}

// putRollout writes what a rollout is now.
func putRollout(ctx context.Context, tx *sql.Tx, r rollout.Rollout, nowMillis int64) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode rollout: %w", err)
	}
	_, err = tx.ExecContext(ctx, `UPDATE rollouts SET state = $2, revision = $3, body = $4, changed = $5 WHERE id = $1`,
		r.ID, r.State, newGrantID(), string(body), nowMillis)
	if err != nil {
		return fmt.Errorf("write rollout: %w", err)
	}
	return nil
}

// operate does one verb to r: row, history, audit line and, where the verb stops
// grants, the end of those that are open, in the transaction of the caller.
func (s *Store) operate(ctx context.Context, tx *sql.Tx, r rollout.Rollout, verb, actor, reason string) (rollout.StageChange, error) {
	next, change, err := rollout.Operate(r, verb, actor, reason, s.now())
	if err != nil {
		return change, err
	}
	return change, s.follow(ctx, tx, r, next, change)
}

// follow makes before the rollout next, because of change.
func (s *Store) follow(ctx context.Context, tx *sql.Tx, before, next rollout.Rollout, change rollout.StageChange) error {
	now := s.now()
	if err := putRollout(ctx, tx, next, millis(now)); err != nil {
		return err
	}
	body, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("encode change: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO rollout_changes (rollout_id, body) VALUES ($1, $2)`, next.ID, string(body)); err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	detail := fmt.Sprintf("%s to %s", stageName(before), stageName(next))
	if change.Reason != "" {
		detail += ": " + change.Reason
	}
	switch change.Action {
	case "start", "expedite":
		if err := s.begun(ctx, tx, next.ID); err != nil {
			return err
		}
	case "resume":
		if before.State == rollout.Halted {
			if err := s.judgeAnew(ctx, tx, next.ID); err != nil {
				return err
			}
		}
	case "halt", "pause", "withdraw":
		n, err := voidGrants(ctx, tx, next.ID, millis(now))
		if err != nil {
			return err
		}
		detail += fmt.Sprintf("; open grants made void: %d", n)
	}
	return audit(ctx, tx, now, change.Actor, "rollout."+change.Action, rolloutName(next), detail)
}

// stageName is a rollout's place for the audit log.
func stageName(r rollout.Rollout) string {
	if r.State.Moving() {
		return fmt.Sprintf("%s %g %%", r.State, r.CurrentStage().Share)
	}
	return string(r.State)
}

// begun notes when a rollout first began, and that reports from before are not
// about it.
func (s *Store) begun(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `UPDATE rollouts SET started = $2, judged = (SELECT coalesce(max(seq), 0) FROM reports) WHERE id = $1 AND started = 0`, id, millis(s.now()))
	if err != nil {
		return fmt.Errorf("note the start: %w", err)
	}
	return nil
}

// judgeAnew forgets the evidence: an operator has overruled the judge.
func (s *Store) judgeAnew(ctx context.Context, tx *sql.Tx, id string) error {
	if _, err := tx.ExecContext(ctx, `UPDATE rollouts SET judge = '', judged = (SELECT coalesce(max(seq), 0) FROM reports) WHERE id = $1`, id); err != nil {
		return fmt.Errorf("forget evidence: %w", err)
	}
	return nil
}

// voidGrants makes what was granted and not yet reported on worth nothing, and
// tells how many grants that were.
func voidGrants(ctx context.Context, tx *sql.Tx, id string, nowMillis int64) (int64, error) {
	_, err := tx.ExecContext(ctx, `UPDATE trials SET outcome = 'void' WHERE rollout_id = $1 AND outcome = '' AND loaded = 0 AND machine_id IN
		(SELECT machine_id FROM grants WHERE rollout_id = $1 AND voided = 0 AND reported = 0 AND expires > $2)`, id, nowMillis)
	if err != nil {
		return 0, fmt.Errorf("void trials: %w", err)
	}
	res, err := tx.ExecContext(ctx, `UPDATE grants SET voided = $2 WHERE rollout_id = $1 AND voided = 0 AND reported = 0 AND expires > $2`, id, nowMillis)
	if err != nil {
		return 0, fmt.Errorf("void grants: %w", err)
	}
	return res.RowsAffected()
}

// OperateRollout does one verb to a rollout: start, pause, resume, promote or
// expedite. See rollout.Operate for what each wants; CodeConflict when it does not
// fit the state. Halts go through HaltRollout, withdrawals through a signed
// publication.
func (s *Store) OperateRollout(ctx context.Context, actor, id, verb, reason string) (rollout.StageChange, error) {
	switch verb {
	case "start", "pause", "resume", "promote", "expedite":
	default:
		return rollout.StageChange{}, livepatch.Errorf(livepatch.CodeInvalid, "%q is not something that can be done to a rollout", verb)
	}
	var change rollout.StageChange
	err := s.write(ctx, func(tx *sql.Tx) error {
		row, err := rolloutRow(ctx, tx, id)
		if err != nil {
			return err
		}
		change, err = s.operate(ctx, tx, row.Rollout, verb, actor, reason)
		return err
	})
	return change, err
}

// HaltRollout stops a rollout: from now on nobody is granted its patch, and open
// grants are void. It is the one way to halt, for operators and the judge alike. It
// tells what changed; nil when it was halted already, which is no error.
// assessment is the judge's evidence and may be nil.
func (s *Store) HaltRollout(ctx context.Context, actor, id, reason string, assessment *rollout.Assessment) (*rollout.StageChange, error) {
	var halted *rollout.StageChange
	err := s.write(ctx, func(tx *sql.Tx) error {
		row, err := rolloutRow(ctx, tx, id)
		if err != nil || row.State == rollout.Halted {
			return err
		}
		next, change, err := rollout.Operate(row.Rollout, "halt", actor, reason, s.now())
		if err != nil {
			return err
		}
		change.Assessment = assessment
		halted = &change
		return s.follow(ctx, tx, row.Rollout, next, change)
	})
	if err != nil {
		return nil, err
	}
	return halted, nil
}

// withdrawRollout ends the rollout of a patch that its catalogue has withdrawn; one
// that has none, or has ended so before, is no error.
func (s *Store) withdrawRollout(ctx context.Context, tx *sql.Tx, actor string, k livepatch.KernelTarget, p livepatch.Livepatch) error {
	var id string
	err := tx.QueryRowContext(ctx, `SELECT id FROM rollouts WHERE release = $1 AND arch = $2 AND version = $3 AND state <> $4`,
		k.Release, k.Arch, p.Version.String(), rollout.Withdrawn).Scan(&id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("find rollout: %w", err)
	}
	row, err := rolloutRow(ctx, tx, id)
	if err != nil {
		return err
	}
	reason := p.Withdrawn.Reason
	if reason == "" {
		reason = "withdrawn"
	}
	_, err = s.operate(ctx, tx, row.Rollout, "withdraw", actor, reason)
	return err
}

// row is a stored rollout.
type row struct {
	rollout.Rollout
	progress                  rollout.Progress
	judge                     *rollout.Judge
	judged                    int64
	created, started, changed int64
}

const selectRollouts = `SELECT body, progress, judge, judged, created, started, changed FROM rollouts `

func scanRollout(scan func(...any) error) (r row, err error) {
	var body, progress, judge string
	if err := scan(&body, &progress, &judge, &r.judged, &r.created, &r.started, &r.changed); err != nil {
		return r, err
	}
	err = errors.Join(json.Unmarshal([]byte(body), &r.Rollout), json.Unmarshal([]byte(progress), &r.progress))
	r.judge = rollout.NewJudge(r.Policy.Judge)
	if judge != "" {
		err = errors.Join(err, json.Unmarshal([]byte(judge), r.judge))
	}
	return r, err
}

// rolloutRow reads one rollout; CodeNotFound when there is none.
func rolloutRow(ctx context.Context, tx *sql.Tx, id string) (row, error) {
	r, err := scanRollout(tx.QueryRowContext(ctx, selectRollouts+`WHERE id = $1`, id).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return r, livepatch.Errorf(livepatch.CodeNotFound, "there is no rollout %q; 'livepatch-admin rollout list' shows those there are", id)
	case err != nil:
		return r, fmt.Errorf("find rollout: %w", err)
	}
	return r, nil
}

// shown is the row as operators see it.
func (s *Store) shown(r row) api.Rollout {
	out := api.Rollout{Rollout: r.Public(), Commitment: r.Commitment(), Created: fromMillis(r.created),
		Started: fromMillis(r.started), Changed: fromMillis(r.changed), Progress: r.progress}
	if r.started != 0 {
		a := r.judge.Assess(&r.Rollout, r.progress, s.now())
		out.Assessment = &a
	}
	if r.State.Moving() && r.Stage+1 < len(r.Policy.Stages) {
		out.SoakedAt = r.SoakedAt()
	}
	return out
}

// Rollouts lists the rollouts of a kernel release, or of all when it is empty;
// newest first, at most 1,000.
func (s *Store) Rollouts(ctx context.Context, release string) ([]api.Rollout, error) {
	rows, err := s.reader.QueryContext(ctx, selectRollouts+`WHERE $1 = '' OR release = $1 ORDER BY created DESC, id LIMIT 1000`, release)
	found, err := collect(rows, err, scanRollout)
	if err != nil {
		return nil, fmt.Errorf("list rollouts: %w", err)
	}
	out := make([]api.Rollout, len(found))
	for i, r := range found {
		out[i] = s.shown(r)
	}
	return out, nil
}

// Rollout returns one rollout with its history; CodeNotFound when there is none.
func (s *Store) Rollout(ctx context.Context, id string) (out api.Rollout, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		r, err := rolloutRow(ctx, tx, id)
		if err != nil {
			return err
		}
		out = s.shown(r)
		rows, err := tx.QueryContext(ctx, `SELECT body FROM rollout_changes WHERE rollout_id = $1 ORDER BY seq`, id)
		if out.Changes, err = collect(rows, err, scanJSON[rollout.StageChange]); err != nil {
			return fmt.Errorf("read history: %w", err)
		}
		return nil
	})
	return out, err
}
