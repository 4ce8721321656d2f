package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"livepatch/internal/api"
)

// audit adds a line to the audit log, in the transaction of what it tells of.
func audit(ctx context.Context, tx *sql.Tx, at time.Time, actor, action, object, detail string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO audit (at, actor, action, object, detail) VALUES ($1, $2, $3, $4, $5)`,
		millis(at), actor, action, object, detail)
	if err != nil {
		return fmt.Errorf("write audit line: %w", err)
	}
	return nil
}

// Audit returns the last n lines of the audit log, newest first.
func (s *Store) Audit(ctx context.Context, n int) ([]api.AuditLine, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT at, actor, action, object, detail FROM audit ORDER BY seq DESC LIMIT $1`, n)
	lines, err := collect(rows, err, func(scan func(...any) error) (l api.AuditLine, err error) {
		var at int64
		err = scan(&at, &l.Actor, &l.Action, &l.Object, &l.Detail)
		l.At = fromMillis(at)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return lines, nil
}
