package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

// catalogueCache keeps catalogues in memory as long as their revision stays: they
// are read with every check-in and change a few times a month.
type catalogueCache struct {
	mu   sync.Mutex
	kept map[livepatch.KernelTarget]keptCatalogue
}

type keptCatalogue struct {
	revision  string
	catalogue *livepatch.Catalogue
}

// cataloguesKept bounds the memory; a fleet rarely has more kernels.
const cataloguesKept = 500

func (c *catalogueCache) get(k livepatch.KernelTarget, revision string) *livepatch.Catalogue {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept := c.kept[k]; kept.revision == revision {
		return kept.catalogue
	}
	return nil
}

func (c *catalogueCache) put(k livepatch.KernelTarget, revision string, cat *livepatch.Catalogue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) >= cataloguesKept {
		clear(c.kept)
	}
	c.kept[k] = keptCatalogue{revision, cat}
}

// catalogue reads a kernel's catalogue, which nobody may change; nil when there is
// none.
func (s *Store) catalogue(ctx context.Context, tx *sql.Tx, k livepatch.KernelTarget) (*livepatch.Catalogue, error) {
	var revision, body string
	err := tx.QueryRowContext(ctx, `SELECT revision, body FROM catalogues WHERE release = $1 AND arch = $2`, k.Release, k.Arch).Scan(&revision, &body)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read catalogue: %w", err)
	}
	if c := s.catalogues.get(k, revision); c != nil {
		return c, nil
	}
	c := new(livepatch.Catalogue)
	if err := json.Unmarshal([]byte(body), c); err != nil {
		return nil, fmt.Errorf("read catalogue: %w", err)
	}
	rows, err := tx.QueryContext(ctx, `SELECT body FROM patches WHERE release = $1 AND arch = $2 ORDER BY major, minor`, k.Release, k.Arch)
	if c.Patches, err = collect(rows, err, scanJSON[livepatch.Livepatch]); err != nil {
		return nil, fmt.Errorf("read patches: %w", err)
	}
	s.catalogues.put(k, revision, c)
	return c, nil
}

// putCatalogue makes the rows of a kernel agree with its signed catalogue and
// tells the audit log what is new in it.
func (s *Store) putCatalogue(ctx context.Context, tx *sql.Tx, p PendingPublication, c livepatch.Catalogue) error {
	now := s.now()
	before, err := s.catalogue(ctx, tx, c.Kernel)
	if err != nil {
		return err
	}
	if before == nil {
		before = &livepatch.Catalogue{}
	}
	head := c
	head.Patches = nil
	body, err := json.Marshal(head)
	if err != nil {
		return fmt.Errorf("encode catalogue: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO catalogues (release, arch, revision, body, changed) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (release, arch) DO UPDATE SET revision = excluded.revision, body = excluded.body, changed = excluded.changed`,
		c.Kernel.Release, c.Kernel.Arch, newID("c", now), string(body), millis(now))
	if err != nil {
		return fmt.Errorf("write catalogue: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM patches WHERE release = $1 AND arch = $2`, c.Kernel.Release, c.Kernel.Arch); err != nil {
		return fmt.Errorf("replace patches: %w", err)
	}
	for _, lp := range c.Patches {
		if err := s.putPatch(ctx, tx, p, c.Kernel, lp, before.Find(lp.Version)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) putPatch(ctx context.Context, tx *sql.Tx, as PendingPublication, k livepatch.KernelTarget, p livepatch.Livepatch, before *livepatch.Livepatch) error {
	body, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	var withdrawn int64
	if p.Withdrawn != nil {
		withdrawn = millis(p.Withdrawn.At)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO patches (release, arch, major, minor, body, withdrawn) VALUES ($1, $2, $3, $4, $5, $6)`,
		k.Release, k.Arch, p.Version.Major, p.Version.Minor, string(body), withdrawn)
	if err != nil {
		return fmt.Errorf("write patch: %w", err)
	}
	object := fmt.Sprintf("%s %s %s", k.Release, k.Arch, p.Version)
	switch {
	case before == nil:
		if err := audit(ctx, tx, s.now(), as.Actor, "patch.publish", object, p.Module.Name); err != nil || p.Withdrawn != nil {
			return err
		}
		return s.stage(ctx, tx, as.Actor, cmp.Or(as.Policy, rollout.Everybody().Name), k, p)
	case p.Withdrawn != nil && before.Withdrawn == nil:
		if err := s.withdrawRollout(ctx, tx, as.Actor, k, p); err != nil {
			return err
		}
		return audit(ctx, tx, s.now(), as.Actor, "patch.withdraw", object, p.Withdrawn.Reason)
	}
	return nil
}

// Patches lists the livepatches of a kernel release, or of all when it is empty;
// by kernel, then version, with how many machines run, failed and suspect each.
func (s *Store) Patches(ctx context.Context, release string) ([]api.Patch, error) {
	rows, err := s.reader.QueryContext(ctx, selectPatches+`WHERE $1 = '' OR p.release = $1 ORDER BY p.release, p.arch, p.major, p.minor`, release)
	patches, err := collect(rows, err, scanPatch)
	if err != nil {
		return nil, fmt.Errorf("list patches: %w", err)
	}
	return patches, nil
}

// Patch returns one livepatch; CodeNotFound when there is none.
func (s *Store) Patch(ctx context.Context, k livepatch.KernelTarget, v livepatch.Version) (api.Patch, error) {
	p, err := scanPatch(s.reader.QueryRowContext(ctx, selectPatches+`WHERE p.release = $1 AND p.arch = $2 AND p.major = $3 AND p.minor = $4`,
		k.Release, k.Arch, v.Major, v.Minor).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return p, livepatch.Errorf(livepatch.CodeNotFound, "there is no livepatch %s for %s", v, k)
	case err != nil:
		return p, fmt.Errorf("find patch: %w", err)
	}
	return p, nil
}

const selectPatches = `SELECT p.release, p.arch, p.body,
	(SELECT count(*) FROM machines m WHERE m.release = p.release AND m.arch = p.arch AND m.version = p.major || '.' || p.minor),
	(SELECT count(DISTINCT r.machine_id) FROM reports r WHERE r.release = p.release AND r.arch = p.arch AND r.version = p.major || '.' || p.minor
		AND r.kind IN ('failed', 'stuck', 'warned', 'oopsed')),
	(SELECT count(DISTINCT r.machine_id) FROM reports r WHERE r.release = p.release AND r.arch = p.arch AND r.version = p.major || '.' || p.minor
		AND r.kind = 'rebooted')
	FROM patches p `

func scanPatch(scan func(...any) error) (p api.Patch, err error) {
	var body string
	if err := scan(&p.Kernel.Release, &p.Kernel.Arch, &body, &p.Machines, &p.Failed, &p.Suspect); err != nil {
		return p, err
	}
	return p, json.Unmarshal([]byte(body), &p.Livepatch)
}
