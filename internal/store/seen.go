package store

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"time"
)

// sawOnly notes that a machine checked in and nothing changed. Memory only: Flush
// writes it down.
func (s *Store) sawOnly(id string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[id] = at
}

func (s *Store) seenAt(id string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[id]
}

func (s *Store) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.seen, id)
}

// Flush writes down when machines were last seen. The server calls it every few
// seconds and at shutdown: a crash loses those few seconds of nothing but
// last-seen times. What fails to be written is kept for the next time.
func (s *Store) Flush(ctx context.Context) error {
	s.mu.Lock()
	batch := maps.Clone(s.seen)
	s.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	err := s.write(ctx, func(tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `UPDATE machines SET last_seen = $2 WHERE id = $1 AND last_seen < $2`)
		if err != nil {
			return err
		}
		defer stmt.Close()
		for id, at := range batch {
			if _, err := stmt.ExecContext(ctx, id, millis(at)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write last-seen times: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range batch {
		if s.seen[id].Equal(at) {
			delete(s.seen, id)
		}
	}
	return nil
}
