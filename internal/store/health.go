package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"livepatch"
	"livepatch/internal/api"
)

const (
	// signaturesShown and machinesShown bound what PatchHealth lists.
	signaturesShown = 20
	machinesShown   = 100
)

// PatchHealth tells how the machines fare that were given a livepatch; CodeNotFound
// when there is none.
func (s *Store) PatchHealth(ctx context.Context, k livepatch.KernelTarget, v livepatch.Version) (api.PatchHealth, error) {
	h := api.PatchHealth{Kernel: k, Version: v, Machines: map[string]int{}, Reports: map[livepatch.ReportKind]int{}}
	p, err := s.Patch(ctx, k, v)
	if err != nil {
		return h, err
	}
	err = s.read(ctx, func(tx *sql.Tx) error {
		row, err := scanRollout(tx.QueryRowContext(ctx, selectRollouts+`WHERE release = $1 AND arch = $2 AND version = $3`, k.Release, k.Arch, v.String()).Scan)
		switch {
		case err == nil:
			shown := s.shown(row)
			h.Rollout = &shown
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("find rollout: %w", err)
		}
		rows, err := tx.QueryContext(ctx, `SELECT CASE outcome WHEN '' THEN 'pending' ELSE outcome END, count(*) FROM trials WHERE rollout_id = $1 GROUP BY outcome`, row.ID)
		if err := tally(rows, err, h.Machines); err != nil {
			return fmt.Errorf("count trials: %w", err)
		}
		rows, err = tx.QueryContext(ctx, `SELECT kind, count(*) FROM reports WHERE release = $1 AND arch = $2 AND version = $3 GROUP BY kind`, k.Release, k.Arch, v.String())
		if err := tally(rows, err, h.Reports); err != nil {
			return fmt.Errorf("count reports: %w", err)
		}
		rows, err = tx.QueryContext(ctx, `SELECT signature, count(DISTINCT machine_id) AS n FROM reports WHERE release = $1 AND arch = $2 AND version = $3 AND signature <> ''
			GROUP BY signature ORDER BY n DESC, signature LIMIT $4`, k.Release, k.Arch, v.String(), signaturesShown)
		h.Signatures, err = collect(rows, err, func(scan func(...any) error) (c api.SignatureCount, err error) {
			err = scan(&c.Signature, &c.Machines)
			return c, err
		})
		if err != nil {
			return fmt.Errorf("count signatures: %w", err)
		}
		if p.Withdrawn == nil {
			return nil
		}
		rows, err = tx.QueryContext(ctx, `SELECT hostname || ' (' || id || ')' FROM machines WHERE release = $1 AND arch = $2 AND version = $3 ORDER BY id LIMIT $4`,
			k.Release, k.Arch, v.String(), machinesShown)
		h.NeedReboot, err = collect(rows, err, func(scan func(...any) error) (m string, err error) {
			err = scan(&m)
			return m, err
		})
		return err
	})
	return h, err
}

// tally reads names with their counts.
func tally[K ~string](rows *sql.Rows, err error, into map[K]int) error {
	_, err = collect(rows, err, func(scan func(...any) error) (n int, err error) {
		var name K
		err = scan(&name, &n)
		into[name] = n
		return n, err
	})
	return err
}
