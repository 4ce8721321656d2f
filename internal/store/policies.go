package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

// builtIn are the policies that are there without a row, each as version 1.
func builtIn() []rollout.Policy {
	return []rollout.Policy{rollout.DefaultPolicy(), rollout.Everybody()}
}

// policy finds the newest version of a policy; CodeNotFound when there is none.
func policy(ctx context.Context, tx *sql.Tx, name string) (rollout.Policy, error) {
	p, err := scanJSON[rollout.Policy](tx.QueryRowContext(ctx, `SELECT body FROM policies WHERE name = $1 ORDER BY version DESC LIMIT 1`, name).Scan)
	if err == nil || !errors.Is(err, sql.ErrNoRows) {
		return p, err
	}
	for _, p := range builtIn() {
		if p.Name == name {
			return p, nil
		}
	}
	return p, livepatch.Errorf(livepatch.CodeNotFound, "there is no rollout policy %q; 'livepatch-admin policy list' shows those there are", name)
}

// Policy returns the newest version of a policy; CodeNotFound when there is none.
func (s *Store) Policy(ctx context.Context, name string) (p rollout.Policy, err error) {
	err = s.read(ctx, func(tx *sql.Tx) error {
		p, err = policy(ctx, tx, name)
		return err
	})
	return p, err
}

// Policies lists the newest version of each policy by name.
func (s *Store) Policies(ctx context.Context) ([]rollout.Policy, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT body FROM policies p WHERE version = (SELECT max(version) FROM policies WHERE name = p.name)`)
	policies, err := collect(rows, err, scanJSON[rollout.Policy])
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	for _, b := range builtIn() {
		if !slices.ContainsFunc(policies, func(p rollout.Policy) bool { return p.Name == b.Name }) {
			policies = append(policies, b)
		}
	}
	slices.SortFunc(policies, func(a, b rollout.Policy) int { return cmp.Compare(a.Name, b.Name) })
	return policies, nil
}

// SetPolicy stores p as the next version of its name, and returns it so. What
// equals the newest version changes nothing. p.Version is the version that p was
// made from: CodeConflict when it is not the newest.
func (s *Store) SetPolicy(ctx context.Context, actor string, p rollout.Policy) (rollout.Policy, error) {
	if err := p.Validate(); err != nil {
		return p, err
	}
	err := s.write(ctx, func(tx *sql.Tx) error {
		newest, err := policy(ctx, tx, p.Name)
		if livepatch.CodeOf(err) == livepatch.CodeNotFound {
			newest, err = rollout.Policy{}, nil
			p.Version = 0
		}
		if err != nil {
			return err
		}
		if p.Version != newest.Version {
			return livepatch.Errorf(livepatch.CodeConflict, "policy %s is at version %d and this one was made from version %d; begin with 'livepatch-admin policy show %s'", p.Name, newest.Version, p.Version, p.Name)
		}
		if reflect.DeepEqual(p, newest) {
			return nil
		}
		p.Version++
		body, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("encode policy: %w", err)
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO policies (name, version, body, actor, created) VALUES ($1, $2, $3, $4, $5)`,
			p.Name, p.Version, string(body), actor, millis(s.now()))
		if err != nil {
			return fmt.Errorf("add policy: %w", err)
		}
		return audit(ctx, tx, s.now(), actor, "policy.set", p.Name, fmt.Sprintf("version %d", p.Version))
	})
	return p, err
}

// PlanRollout keeps how a version is to be rolled out once it is public. It fails
// for a version that is public already, and for a policy that there is not.
func (s *Store) PlanRollout(ctx context.Context, actor string, k livepatch.KernelTarget, v livepatch.Version, p api.Plan) error {
	if p.Expedite && p.Reason == "" {
		return livepatch.Errorf(livepatch.CodeInvalid, "say why it is expedited with a reason: it goes to the audit log")
	}
	if p.Expedite && p.Hold {
		return livepatch.Errorf(livepatch.CodeInvalid, "a rollout is either held or expedited")
	}
	if p.Module == "" {
		return livepatch.Errorf(livepatch.CodeInvalid, "a plan names the module that it is for by its SHA-256")
	}
	body, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode plan: %w", err)
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		if p.Policy != "" {
			if _, err := policy(ctx, tx, p.Policy); err != nil {
				return err
			}
		}
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM rollouts WHERE release = $1 AND arch = $2 AND version = $3`, k.Release, k.Arch, v.String()).Scan(&n); err != nil {
			return fmt.Errorf("look up rollout: %w", err)
		}
		if n > 0 {
			return livepatch.Errorf(livepatch.CodeConflict, "livepatch %s of %s is public already; its rollout is changed with 'livepatch-admin rollout'", v, k)
		}
		if p == (api.Plan{Module: p.Module}) { // nothing special, whatever was planned before
			_, err := tx.ExecContext(ctx, `DELETE FROM plans WHERE release = $1 AND arch = $2 AND version = $3 AND module = $4`, k.Release, k.Arch, v.String(), p.Module)
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO plans (release, arch, version, module, body) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (release, arch, version, module) DO UPDATE SET body = excluded.body`, k.Release, k.Arch, v.String(), p.Module, string(body))
		if err != nil {
			return fmt.Errorf("keep plan: %w", err)
		}
		return audit(ctx, tx, s.now(), actor, "rollout.plan", fmt.Sprintf("%s %s", k, v), string(body))
	})
}

// takePlan returns the plan for what was published, which is the zero Plan when
// there is none, and forgets all plans for its version.
func takePlan(ctx context.Context, tx *sql.Tx, k livepatch.KernelTarget, lp livepatch.Livepatch) (api.Plan, error) {
	p, err := scanJSON[api.Plan](tx.QueryRowContext(ctx, `SELECT body FROM plans WHERE release = $1 AND arch = $2 AND version = $3 AND module = $4`,
		k.Release, k.Arch, lp.Version.String(), lp.Module.SHA256).Scan)
	if _, err := tx.ExecContext(ctx, `DELETE FROM plans WHERE release = $1 AND arch = $2 AND version = $3`, k.Release, k.Arch, lp.Version.String()); err != nil {
		return p, err
	}
	if errors.Is(err, sql.ErrNoRows) {
		return api.Plan{}, nil
	}
	return p, err
}
