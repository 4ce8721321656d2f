package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"livepatch"
)

// AddOperator gives the holder of credential the operators' rights, under a name
// that the audit log shows. CodeConflict when the name is taken.
func (s *Store) AddOperator(ctx context.Context, actor, name, credential string) error {
	now := s.now()
	return s.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `INSERT INTO operators (id, name, hash, created) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			newID("o", now), name, Hash(credential), millis(now))
		if err != nil {
			return fmt.Errorf("add operator: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(livepatch.Errorf(livepatch.CodeConflict, "there is an operator %s already", name), err)
		}
		return audit(ctx, tx, now, actor, "operator.create", name, "")
	})
}

// Operator is somebody with the operators' rights.
type Operator struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

// Operators lists all operators by name.
func (s *Store) Operators(ctx context.Context) ([]Operator, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT name, created FROM operators ORDER BY name`)
	operators, err := collect(rows, err, func(scan func(...any) error) (o Operator, err error) {
		var created int64
		err = scan(&o.Name, &created)
		o.Created = fromMillis(created)
		return o, err
	})
	if err != nil {
		return nil, fmt.Errorf("list operators: %w", err)
	}
	return operators, nil
}

// RemoveOperator ends an operator's credential. Servers that have seen it lately
// may accept it for some seconds more.
func (s *Store) RemoveOperator(ctx context.Context, actor, name string) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM operators WHERE name = $1`, name)
		if err != nil {
			return fmt.Errorf("remove operator: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(livepatch.Errorf(livepatch.CodeNotFound, "there is no operator %s", name), err)
		}
		return audit(ctx, tx, s.now(), actor, "operator.remove", name, "")
	})
}

// OperatorByCredential returns the name of the operator whose credential has this
// Hash; CodeUnauthorized when there is none.
func (s *Store) OperatorByCredential(ctx context.Context, hash string) (string, error) {
	return s.byCredential(ctx, `SELECT name FROM operators WHERE hash = $1`, hash)
}

// MachineByCredential returns the id of the machine whose credential has this
// Hash; CodeUnauthorized when there is none.
func (s *Store) MachineByCredential(ctx context.Context, hash string) (string, error) {
	return s.byCredential(ctx, `SELECT id FROM machines WHERE credential_hash = $1`, hash)
}

func (s *Store) byCredential(ctx context.Context, query, hash string) (string, error) {
	var who string
	err := s.reader.QueryRowContext(ctx, query, hash).Scan(&who)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", livepatch.Errorf(livepatch.CodeUnauthorized, "this credential is not known here")
	case err != nil:
		return "", fmt.Errorf("look up credential: %w", err)
	}
	return who, nil
}
