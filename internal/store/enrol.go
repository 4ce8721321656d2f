package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

// Enrol exchanges a token for a place in its account and tells whether the
// machine is new there. A machine id that has a place already keeps it, uses up
// nothing, and from then on has the credential of this request only. Limits are
// looked at and used in one transaction, so that enrolments at the same time
// cannot exceed them.
func (s *Store) Enrol(ctx context.Context, r api.EnrolRequest) (api.EnrolResponse, bool, error) {
	var (
		answer  api.EnrolResponse
		created bool
	)
	err := s.write(ctx, func(tx *sql.Tx) error {
		t, err := s.usableToken(ctx, tx, r.Token)
		if err != nil {
			return err
		}
		a, err := account(ctx, tx, t.accountID)
		if err != nil {
			return err
		}
		answer = api.EnrolResponse{Account: a.Name, Plan: a.Plan}
		if err := s.freeCredential(ctx, tx, a.ID, r); err != nil {
			return err
		}
		err = tx.QueryRowContext(ctx, `SELECT id, tier FROM machines WHERE account_id = $1 AND machine_id = $2`, a.ID, r.MachineID).Scan(&answer.ID, &answer.Tier)
		answer.Tier = rollout.FirstTier(a.Plan, answer.Tier)
		switch {
		case err == nil:
			return s.enrolAgain(ctx, tx, answer.ID, r)
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("find machine: %w", err)
		}
		if t.maxUses > 0 && t.uses >= t.maxUses {
			return livepatch.Errorf(livepatch.CodeTokenUsed, "this token was made for %s, which enrolled already; ask for another token", machines(t.maxUses))
		}
		if a.Machines >= a.Limit {
			return seatsTaken(ctx, tx, a)
		}
		answer.ID, created = newID("m", s.now()), true
		return s.enrolNew(ctx, tx, answer, t, r)
	})
	return answer, created, err
}

// machines counts them in words.
func machines(n int) string {
	if n == 1 {
		return "1 machine"
	}
	return fmt.Sprintf("%d machines", n)
}

// token is an account token as enrolment needs it.
type token struct {
	id, accountID string
	uses, maxUses int
}

// usableToken finds the token by its secret and tells why it cannot be used.
func (s *Store) usableToken(ctx context.Context, tx *sql.Tx, secret string) (token, error) {
	var (
		t                token
		expires, revoked int64
	)
	err := tx.QueryRowContext(ctx, `SELECT id, account_id, uses, max_uses, expires, revoked FROM tokens WHERE hash = $1`, Hash(secret)).
		Scan(&t.id, &t.accountID, &t.uses, &t.maxUses, &expires, &revoked)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return t, livepatch.Errorf(livepatch.CodeUnknownToken, "Unknown Auth-Token: this server never issued it; copy the whole token, and check that it is for this server")
	case err != nil:
		return t, fmt.Errorf("find token: %w", err)
	case revoked != 0:
		return t, livepatch.Errorf(livepatch.CodeTokenRevoked, "this token was revoked on %s; ask for another one", fromMillis(revoked).Format("2006-01-02"))
	case expires != 0 && expires <= millis(s.now()):
		return t, livepatch.Errorf(livepatch.CodeTokenRevoked, "this token expired on %s; ask for another one", fromMillis(expires).Format("2006-01-02"))
	}
	return t, nil
}

// freeCredential refuses a credential that another machine has.
func (s *Store) freeCredential(ctx context.Context, tx *sql.Tx, account string, r api.EnrolRequest) error {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT count(*) FROM machines WHERE credential_hash = $1 AND NOT (account_id = $2 AND machine_id = $3)`,
		Hash(r.Credential), account, r.MachineID).Scan(&n)
	if err != nil {
		return fmt.Errorf("look up credential: %w", err)
	}
	if n > 0 {
		return livepatch.Errorf(livepatch.CodeConflict, "this credential belongs to another machine; make a new one")
	}
	return nil
}

func (s *Store) enrolAgain(ctx context.Context, tx *sql.Tx, id string, r api.EnrolRequest) error {
	var before string
	err := tx.QueryRowContext(ctx, `SELECT credential_hash FROM machines WHERE id = $1`, id).Scan(&before)
	if err != nil {
		return fmt.Errorf("find machine: %w", err)
	}
	if before == Hash(r.Credential) {
		return nil // the same request once more, its answer was lost
	}
	_, err = tx.ExecContext(ctx, `UPDATE machines SET credential_hash = $2, hostname = $3 WHERE id = $1`, id, Hash(r.Credential), r.Hostname)
	if err != nil {
		return fmt.Errorf("enrol again: %w", err)
	}
	return audit(ctx, tx, s.now(), "machine "+id, "machine.enrol", id, "again, with a new credential; "+r.Hostname)
}

func (s *Store) enrolNew(ctx context.Context, tx *sql.Tx, as api.EnrolResponse, t token, r api.EnrolRequest) error {
	now := s.now()
	state, err := json.Marshal(api.CheckInRequest{
		Kernel: r.Kernel, AgentVersion: r.AgentVersion, CheckState: livepatch.CheckNeeded, PatchState: livepatch.StateUnknown,
	})
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO machines
		(id, account_id, token_id, machine_id, credential_hash, hostname, tier, release, arch, version, state, enrolled, last_seen)
		VALUES ($1, $2, $3, $4, $5, $6, '', $7, $8, '', $9, $10, $10)`,
		as.ID, t.accountID, t.id, r.MachineID, Hash(r.Credential), r.Hostname, r.Kernel.Release, r.Kernel.Arch, string(state), millis(now))
	if err != nil {
		return fmt.Errorf("add machine: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `UPDATE tokens SET uses = uses + 1 WHERE id = $1`, t.id); err != nil {
		return fmt.Errorf("count token use: %w", err)
	}
	return audit(ctx, tx, now, "token "+t.id, "machine.enrol", as.ID, r.Hostname)
}

// holdersShown is how many machines the message about taken seats names.
const holdersShown = 10

// seatsTaken says which machines hold the seats, so that somebody can decide
// which of them to give up.
func seatsTaken(ctx context.Context, tx *sql.Tx, a api.Account) error {
	rows, err := tx.QueryContext(ctx, `SELECT hostname, id FROM machines WHERE account_id = $1 ORDER BY id LIMIT $2`, a.ID, holdersShown)
	holders, err := collect(rows, err, func(scan func(...any) error) (string, error) {
		var host, id string
		err := scan(&host, &id)
		if host == "" {
			host = "unnamed"
		}
		return host + " (" + id + ")", err
	})
	if err != nil {
		return fmt.Errorf("list seats: %w", err)
	}
	more := ""
	if a.Machines > len(holders) {
		more = fmt.Sprintf(" and %d more", a.Machines-len(holders))
	}
	return livepatch.Errorf(livepatch.CodeSeatLimit,
		"account %s has machines on all %d seats of its plan (%s): %s%s; run 'livepatch disable' on one of them, have the operator remove one, or ask for a bigger plan",
		a.Name, a.Limit, a.Plan, strings.Join(holders, ", "), more)
}
