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

const selectMachines = `SELECT m.id, a.name, m.machine_id, m.hostname, a.plan, m.tier, m.version, m.state, m.enrolled, m.last_seen
	FROM machines m JOIN accounts a ON a.id = m.account_id `

func (s *Store) scanMachine(scan func(...any) error) (m api.Machine, err error) {
	var (
		version, state     string
		plan               string
		enrolled, lastSeen int64
	)
	if err := scan(&m.ID, &m.Account, &m.MachineID, &m.Hostname, &plan, &m.Tier, &version, &state, &enrolled, &lastSeen); err != nil {
		return m, err
	}
	m.Tier = rollout.FirstTier(plan, m.Tier)
	var in api.CheckInRequest
	if err := json.Unmarshal([]byte(state), &in); err != nil {
		return m, fmt.Errorf("state of machine %s: %w", m.ID, err)
	}
	if m.Version, err = livepatch.ParseVersion(version); err != nil {
		return m, err
	}
	m.Kernel, m.PatchState, m.CheckState = in.Kernel, in.PatchState, in.CheckState
	m.Loaded, m.Suspects, m.Problem = in.Loaded, in.Suspects, in.Problem
	m.BootID, m.BootTime, m.AgentVersion = in.BootID, in.BootTime, in.AgentVersion
	m.Hardware, m.Virt = in.Hardware, in.Virt
	m.Enrolled, m.LastSeen = fromMillis(enrolled), fromMillis(lastSeen)
	if seen := s.seenAt(m.ID); seen.After(m.LastSeen) {
		m.LastSeen = seen.UTC()
	}
	return m, nil
}

// Machines lists machines, oldest enrolment first: at most limit of those whose id
// is after the given one.
func (s *Store) Machines(ctx context.Context, f api.MachineFilter, after string, limit int) ([]api.Machine, error) {
	var machines []api.Machine
	err := s.read(ctx, func(tx *sql.Tx) error {
		id := ""
		if f.Account != "" {
			a, err := account(ctx, tx, f.Account)
			if err != nil {
				return err
			}
			id = a.ID
		}
		rows, err := tx.QueryContext(ctx, selectMachines+`WHERE ($1 = '' OR m.account_id = $1) AND ($2 = '' OR m.release = $2) AND m.id > $3 ORDER BY m.id LIMIT $4`,
			id, f.Kernel, after, limit)
		if machines, err = collect(rows, err, s.scanMachine); err != nil {
			return fmt.Errorf("list machines: %w", err)
		}
		return nil
	})
	return machines, err
}

// reportsShown is how many reports Machine returns.
const reportsShown = 20

// Machine returns one machine with its latest reports, newest first. ref is its id,
// or its machine id or host name where that is unambiguous.
func (s *Store) Machine(ctx context.Context, ref string) (api.Machine, error) {
	var m api.Machine
	err := s.read(ctx, func(tx *sql.Tx) error {
		var err error
		if m, err = s.machine(ctx, tx, ref); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT body FROM reports WHERE machine_id = $1 ORDER BY seq DESC LIMIT $2`, m.ID, reportsShown)
		m.Reports, err = collect(rows, err, scanJSON[livepatch.Report])
		if err != nil {
			return fmt.Errorf("list reports: %w", err)
		}
		return nil
	})
	return m, err
}

func scanJSON[T any](scan func(...any) error) (v T, err error) {
	var body string
	if err := scan(&body); err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(body), &v)
}

func (s *Store) machine(ctx context.Context, tx *sql.Tx, ref string) (api.Machine, error) {
	rows, err := tx.QueryContext(ctx, selectMachines+`WHERE m.id = $1 OR m.machine_id = $1 OR m.hostname = $1 ORDER BY m.id = $1 DESC, m.id LIMIT 5`, ref)
	found, err := collect(rows, err, s.scanMachine)
	switch {
	case err != nil:
		return api.Machine{}, fmt.Errorf("find machine: %w", err)
	case len(found) == 0:
		return api.Machine{}, livepatch.Errorf(livepatch.CodeNotFound, "there is no machine %q", ref)
	case len(found) > 1 && found[0].ID != ref:
		ids := make([]string, len(found))
		for i, m := range found {
			ids[i] = m.ID
		}
		return api.Machine{}, livepatch.Errorf(livepatch.CodeConflict, "several machines are called %s; name one by its id: %s", ref, strings.Join(ids, ", "))
	}
	return found[0], nil
}

// RemoveMachine takes a machine's place and credential away and returns its id.
// ref is as in Machine.
func (s *Store) RemoveMachine(ctx context.Context, actor, ref string) (string, error) {
	var id string
	err := s.write(ctx, func(tx *sql.Tx) error {
		m, err := s.machine(ctx, tx, ref)
		if err != nil {
			return err
		}
		id = m.ID
		if _, err := tx.ExecContext(ctx, `DELETE FROM machines WHERE id = $1`, m.ID); err != nil {
			return fmt.Errorf("remove machine: %w", err)
		}
		return audit(ctx, tx, s.now(), actor, "machine.remove", m.ID, m.Hostname)
	})
	if err == nil {
		s.forget(id)
	}
	return id, err
}

// SetTier notes the first tier that a machine's owner asked for: canary, early or
// general; empty is the plan's own. Community machines are canaries whatever they
// ask for. ref is as in Machine.
func (s *Store) SetTier(ctx context.Context, actor, ref string, tier livepatch.Tier) (api.Machine, error) {
	switch tier {
	case "", livepatch.TierCanary, livepatch.TierEarly, livepatch.TierGeneral:
	default:
		return api.Machine{}, livepatch.Errorf(livepatch.CodeInvalid, "tier %q is not one of canary, early, general", tier)
	}
	var m api.Machine
	err := s.write(ctx, func(tx *sql.Tx) error {
		var err error
		if m, err = s.machine(ctx, tx, ref); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE machines SET tier = $2 WHERE id = $1`, m.ID, tier); err != nil {
			return fmt.Errorf("set tier: %w", err)
		}
		if m, err = s.machine(ctx, tx, m.ID); err != nil {
			return err
		}
		return audit(ctx, tx, s.now(), actor, "machine.tier", m.ID, fmt.Sprintf("asked for %q, is in %s", tier, m.Tier))
	})
	return m, err
}

// Leave is RemoveMachine by the machine itself; one that is gone already is no
// error.
func (s *Store) Leave(ctx context.Context, id string) error {
	_, err := s.RemoveMachine(ctx, "machine "+id, id)
	var known *livepatch.Error
	if errors.As(err, &known) && known.Code == livepatch.CodeNotFound {
		return nil
	}
	return err
}
