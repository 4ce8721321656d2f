package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// Outcome is how a machine's trial of a patch went so far.
type Outcome string

// The outcomes.
const (
	// Watched: no word yet, or not enough time.
	Watched Outcome = ""
	// Healthy: got through the policy's watch.
	Healthy Outcome = "healthy"
	// Harmed: crashed or warned.
	Harmed Outcome = "harmed"
	// Void: a halt came before it was used.
	Void Outcome = "void"
)

// Trial is what became of one machine's grant.
type Trial struct {
	Granted time.Time
	// Loaded is when the machine said that it applied it; zero before.
	Loaded  time.Time
	Outcome Outcome
}

// Member is one machine of the fleet that a patch is for.
type Member struct {
	rollout.Machine
	// Hardware and Virt are what the machine says that it is.
	Hardware, Virt string
	LastSeen       time.Time
	// Trial is nil for a machine that was not granted the patch.
	Trial *Trial
}

// News is one report that was not weighed yet.
type News struct {
	Machine string
	// Plan, OptIn, Hardware and Virt are those of the machine.
	Plan           string
	OptIn          livepatch.Tier
	Hardware, Virt string
	Version        livepatch.Version
	Kind           livepatch.ReportKind
	Code           livepatch.Code
	Signature      string
	// OwnCode tells that it crashed in the module's code.
	OwnCode bool
	// Known tells that machines had this signature without the patch, before it.
	Known    bool
	Received time.Time
	// Trial is that of the machine, or nil; Loaded in it is as of the report.
	Trial *Trial
}

// Weighed names a machine and a kind of which one report was weighed.
type Weighed struct {
	Machine string
	Kind    rollout.Harm
}

// Evidence is everything that a verdict is made from.
type Evidence struct {
	Now     time.Time
	Rollout rollout.Rollout
	Started time.Time
	Judge   *rollout.Judge
	// Fleet are the machines that run the patch's kernel release now.
	Fleet []Member
	// News are the reports since the last time, oldest first, at most newsAtOnce.
	News []News
	// Weighed are what was weighed before.
	Weighed map[Weighed]bool
}

// Judgement is what follows from Evidence.
type Judgement struct {
	// Rollout is as it goes on, after Changes; a halt is not among them. See
	// HaltRollout.
	Rollout  rollout.Rollout
	Changes  []rollout.StageChange
	Judge    *rollout.Judge
	Progress rollout.Progress
	// Weighed and Healthy are new this time.
	Weighed []Weighed
	Healthy []string
	// Halt is the change that halts it; nil when nothing does.
	Halt *rollout.StageChange
	// Waiting are the machines whose turn it is now.
	Waiting []string
}

const (
	// newsAtOnce bounds how many reports are weighed in one transaction.
	newsAtOnce = 1000
	// knownFor is how far back a signature counts as known.
	knownFor = 30 * 24 * time.Hour
)

// MovingRollouts are the ids of the rollouts that can grant something and changed
// no longer ago than within, oldest first.
func (s *Store) MovingRollouts(ctx context.Context, within time.Duration) ([]string, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT id FROM rollouts WHERE state IN ($1, $2, $3) AND changed > $4 ORDER BY created, id`,
		rollout.Canary, rollout.Early, rollout.General, millis(s.now().Add(-within)))
	ids, err := collect(rows, err, func(scan func(...any) error) (id string, err error) {
		err = scan(&id)
		return id, err
	})
	if err != nil {
		return nil, fmt.Errorf("list rollouts: %w", err)
	}
	return ids, nil
}

// RolloutStates counts the rollouts by state.
func (s *Store) RolloutStates(ctx context.Context) (map[rollout.State]int, error) {
	states := map[rollout.State]int{}
	rows, err := s.reader.QueryContext(ctx, `SELECT state, count(*) FROM rollouts GROUP BY state`)
	_, err = collect(rows, err, func(scan func(...any) error) (n int, err error) {
		var st rollout.State
		err = scan(&st, &n)
		states[st] = n
		return n, err
	})
	if err != nil {
		return nil, fmt.Errorf("count rollouts: %w", err)
	}
	return states, nil
}

// JudgeRollout gathers the evidence on a rollout, has it weighed and writes what
// follows, in one transaction. weigh is called inside it and maybe twice, so it
// does nothing else. Where nothing follows, nothing is written.
func (s *Store) JudgeRollout(ctx context.Context, id string, weigh func(Evidence) Judgement) (Judgement, error) {
	var (
		j    Judgement
		todo bool
	)
	weighed := func(tx *sql.Tx) (row, Evidence, int64, error) {
		r, err := rolloutRow(ctx, tx, id)
		if err != nil {
			return r, Evidence{}, 0, err
		}
		e, seq, err := s.evidence(ctx, tx, r)
		if err != nil {
			return r, e, seq, err
		}
		j = weigh(e)
		todo = seq > r.judged || len(j.Changes)+len(j.Weighed)+len(j.Healthy) > 0 || !reflect.DeepEqual(j.Progress, r.progress)
		return r, e, seq, nil
	}
	err := s.read(ctx, func(tx *sql.Tx) error {
		_, _, _, err := weighed(tx)
		return err
	})
	if err != nil || !todo {
		return j, err
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		before, _, seq, err := weighed(tx)
		if err != nil {
			return err
		}
		return s.settle(ctx, tx, before, j, seq)
	})
	return j, err
}

// settle writes what follows.
func (s *Store) settle(ctx context.Context, tx *sql.Tx, before row, j Judgement, seq int64) error {
	judge, err1 := json.Marshal(j.Judge)
	progress, err2 := json.Marshal(j.Progress)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("encode judgement: %w %w", err1, err2)
	}
	_, err := tx.ExecContext(ctx, `UPDATE rollouts SET judge = $2, progress = $3, judged = $4 WHERE id = $1`, before.ID, string(judge), string(progress), seq)
	if err != nil {
		return fmt.Errorf("write judgement: %w", err)
	}
	for _, w := range j.Weighed {
		if _, err := tx.ExecContext(ctx, `INSERT INTO weighed (rollout_id, machine_id, kind) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, before.ID, w.Machine, w.Kind); err != nil {
			return fmt.Errorf("note what was weighed: %w", err)
		}
	}
	for _, m := range j.Healthy {
		if _, err := tx.ExecContext(ctx, `UPDATE trials SET outcome = 'healthy' WHERE rollout_id = $1 AND machine_id = $2 AND outcome = ''`, before.ID, m); err != nil {
			return fmt.Errorf("note health: %w", err)
		}
	}
	at := before.Rollout
	for _, c := range j.Changes {
		next := j.Rollout
		next.State, next.Stage = c.To, c.ToStage
		if err := s.follow(ctx, tx, at, next, c); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// evidence reads what is known, and the seq of the last report in it.
func (s *Store) evidence(ctx context.Context, tx *sql.Tx, r row) (e Evidence, seq int64, err error) {
	e = Evidence{Now: s.now(), Rollout: r.Rollout, Started: fromMillis(r.started), Judge: r.judge, Weighed: map[Weighed]bool{}}
	rows, err := tx.QueryContext(ctx, `SELECT m.id, a.plan, m.tier, m.hardware, m.virt, m.version, m.last_seen, coalesce(t.granted, 0), coalesce(t.loaded, 0), coalesce(t.outcome, '')
		FROM machines m JOIN accounts a ON a.id = m.account_id LEFT JOIN trials t ON t.machine_id = m.id AND t.rollout_id = $1
		WHERE m.release = $2 AND m.arch = $3 ORDER BY m.id`, r.ID, r.Kernel.Release, r.Kernel.Arch)
	e.Fleet, err = collect(rows, err, func(scan func(...any) error) (Member, error) { return s.scanMember(scan, r.Kernel) })
	if err != nil {
		return e, 0, fmt.Errorf("read the fleet: %w", err)
	}
	rows, err = tx.QueryContext(ctx, `SELECT machine_id, kind FROM weighed WHERE rollout_id = $1`, r.ID)
	_, err = collect(rows, err, func(scan func(...any) error) (w Weighed, err error) {
		err = scan(&w.Machine, &w.Kind)
		e.Weighed[w] = true
		return w, err
	})
	if err != nil {
		return e, 0, fmt.Errorf("read what was weighed: %w", err)
	}
	seq = r.judged
	rows, err = tx.QueryContext(ctx, `SELECT r.seq, r.machine_id, a.plan, m.tier, m.hardware, m.virt, r.body, r.received, coalesce(t.granted, 0), CASE WHEN r.loaded > 0 THEN r.loaded ELSE coalesce(t.loaded, 0) END, coalesce(t.outcome, '')
		FROM reports r JOIN machines m ON m.id = r.machine_id JOIN accounts a ON a.id = m.account_id
		LEFT JOIN trials t ON t.machine_id = r.machine_id AND t.rollout_id = $1
		WHERE r.seq > $2 AND r.release = $3 AND r.arch = $4 ORDER BY r.seq LIMIT $5`, r.ID, r.judged, r.Kernel.Release, r.Kernel.Arch, newsAtOnce)
	e.News, err = collect(rows, err, func(scan func(...any) error) (News, error) { return scanNews(scan, &seq) })
	if err != nil {
		return e, seq, fmt.Errorf("read reports: %w", err)
	}
	return e, seq, s.known(ctx, tx, r, e.News)
}

func (s *Store) scanMember(scan func(...any) error, k livepatch.KernelTarget) (m Member, err error) {
	var (
		version                string
		seen, granted, applied int64
		outcome                Outcome
	)
	if err := scan(&m.ID, &m.Plan, &m.OptIn, &m.Hardware, &m.Virt, &version, &seen, &granted, &applied, &outcome); err != nil {
		return m, err
	}
	m.Kernel.Release, m.Kernel.Arch = k.Release, k.Arch
	m.LastSeen = fromMillis(seen)
	if at := s.seenAt(m.ID); at.After(m.LastSeen) {
		m.LastSeen = at.UTC()
	}
	m.Trial = trial(granted, applied, outcome)
	m.Running, err = livepatch.ParseVersion(version)
	return m, err
}

func trial(granted, loaded int64, outcome Outcome) *Trial {
	if granted == 0 {
		return nil
	}
	return &Trial{Granted: fromMillis(granted), Loaded: fromMillis(loaded), Outcome: outcome}
}

func scanNews(scan func(...any) error, seq *int64) (n News, err error) {
	var (
		body                      string
		received, granted, loaded int64
		outcome                   Outcome
		r                         livepatch.Report
	)
	if err := scan(seq, &n.Machine, &n.Plan, &n.OptIn, &n.Hardware, &n.Virt, &body, &received, &granted, &loaded, &outcome); err != nil {
		return n, err
	}
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		return n, err
	}
	n.Version, n.Kind, n.Code, n.Signature = r.Version, r.Kind, r.Code, r.Signature
	n.OwnCode = rollout.InOwnCode(r.Evidence, r.Module)
	n.Received, n.Trial = fromMillis(received), trial(granted, loaded, outcome)
	return n, nil
}

// known marks the signatures that machines had before the rollout began.
func (s *Store) known(ctx context.Context, tx *sql.Tx, r row, news []News) error {
	for i := range news {
		if news[i].Signature == "" {
			continue
		}
		var n int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM reports WHERE signature = $1 AND received BETWEEN $2 AND $3
			AND NOT (release = $4 AND arch = $5 AND version = $6) LIMIT 1) AS found`,
			news[i].Signature, r.started-knownFor.Milliseconds(), r.started, r.Kernel.Release, r.Kernel.Arch, r.Version.String()).Scan(&n)
		if err != nil {
			return fmt.Errorf("look up signature: %w", err)
		}
		news[i].Known = n > 0
	}
	return nil
}
