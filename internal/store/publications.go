package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"livepatch"
	"livepatch/internal/api"
)

// PendingPublication is a publication of which it is not known how far it got.
type PendingPublication struct {
	ID          string
	Actor       string
	Publication api.Publication
	// Policy is the rollout policy of patches for which there is no plan; by default
	// everybody.
	Policy string
}

// BeginPublication writes down that a publication is about to change the stream.
// It tells whether that is still to be done: false when the same was completed
// before.
func (s *Store) BeginPublication(ctx context.Context, p PendingPublication) (bool, error) {
	body, err := json.Marshal(p.Publication)
	if err != nil {
		return false, fmt.Errorf("encode publication: %w", err)
	}
	var state string
	err = s.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO publications (id, state, actor, body, created, completed) VALUES ($1, 'pending', $2, $3, $4, 0) ON CONFLICT (id) DO NOTHING`,
			p.ID, p.Actor, string(body), millis(s.now()))
		if err != nil {
			return fmt.Errorf("begin publication: %w", err)
		}
		return tx.QueryRowContext(ctx, `SELECT state FROM publications WHERE id = $1`, p.ID).Scan(&state)
	})
	return state == "pending", err
}

// AbandonPublication forgets a pending publication that did not change the stream.
func (s *Store) AbandonPublication(ctx context.Context, id string) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM publications WHERE id = $1 AND state = 'pending'`, id); err != nil {
			return fmt.Errorf("abandon publication: %w", err)
		}
		return nil
	})
}

// CompletePublication makes the rows agree with the stream after a publication
// with these catalogues became public. A second time it does nothing.
func (s *Store) CompletePublication(ctx context.Context, p PendingPublication, catalogues []livepatch.Catalogue) error {
	now := s.now()
	return s.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE publications SET state = 'complete', body = '', completed = $2 WHERE id = $1 AND state = 'pending'`, p.ID, millis(now))
		if err != nil {
			return fmt.Errorf("complete publication: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err
		}
		for _, c := range catalogues {
			if err := s.putCatalogue(ctx, tx, p, c); err != nil {
				return err
			}
		}
		return audit(ctx, tx, now, p.Actor, "stream.publish", p.ID[:min(12, len(p.ID))], p.Publication.Reason)
	})
}

// PendingPublications lists what a crash left half done, oldest first.
func (s *Store) PendingPublications(ctx context.Context) ([]PendingPublication, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT id, actor, body FROM publications WHERE state = 'pending' ORDER BY seq`)
	pending, err := collect(rows, err, func(scan func(...any) error) (p PendingPublication, err error) {
		var body string
		if err := scan(&p.ID, &p.Actor, &body); err != nil {
			return p, err
		}
		return p, json.Unmarshal([]byte(body), &p.Publication)
	})
	if err != nil {
		return nil, fmt.Errorf("list pending publications: %w", err)
	}
	return pending, nil
}
