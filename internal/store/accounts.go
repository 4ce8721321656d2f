package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"livepatch"
	"livepatch/internal/api"
)

// Seats tells how many machines a plan is for; false when there is no such plan.
func Seats(plan string) (int, bool) {
	switch plan {
	case "community":
		return 3, true
	case "essential":
		return 25, true
	case "standard":
		return 100, true
	case "advanced":
		return 1000, true
	}
	return 0, false
}

// accountNameRE: people type account names into commands and read them in messages,
// so a name has nothing that a shell, a flag parser or a terminal takes for its own,
// but for blanks and apostrophes, which names of firms have.
var accountNameRE = regexp.MustCompile(`^[\pL\pM\pN._@'][\pL\pM\pN._@' -]*$`)

func validAccountName(name string) bool {
	return len(name) <= 100 && accountNameRE.MatchString(name) && strings.TrimSpace(name) == name
}

// CreateAccount makes an account. The plan is community where none is given.
func (s *Store) CreateAccount(ctx context.Context, actor string, n api.NewAccount) (api.Account, error) {
	if n.Plan == "" {
		n.Plan = "community"
	}
	seats, ok := Seats(n.Plan)
	switch {
	case !ok:
		return api.Account{}, livepatch.Errorf(livepatch.CodeInvalid, "plan %q is not one of community, essential, standard, advanced", n.Plan)
	case !validAccountName(n.Name):
		return api.Account{}, livepatch.Errorf(livepatch.CodeInvalid, "account name %.100q is not made of 1 to 100 letters, digits, blanks and . _ - @ ' (no blank at either end, no - first)", n.Name)
	case n.Limit < 0:
		return api.Account{}, livepatch.Errorf(livepatch.CodeInvalid, "limit %d is below 0", n.Limit)
	case n.Limit > 0:
		seats = n.Limit
	}
	now := s.now()
	a := api.Account{ID: newID("a", now), Name: n.Name, Plan: n.Plan, Limit: seats, Created: fromMillis(millis(now))}
	err := s.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `INSERT INTO accounts (id, name, plan, seat_limit, created) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
			a.ID, a.Name, a.Plan, n.Limit, millis(now))
		if err != nil {
			return fmt.Errorf("add account: %w", err)
		}
		if added, err := res.RowsAffected(); err != nil || added == 0 {
			return errors.Join(livepatch.Errorf(livepatch.CodeConflict, "there is an account %q already", a.Name), err)
		}
		return audit(ctx, tx, now, actor, "account.create", a.ID, fmt.Sprintf("%s, plan %s, %s", a.Name, a.Plan, machines(a.Limit)))
	})
	return a, err
}

const selectAccounts = `SELECT a.id, a.name, a.plan, a.seat_limit, a.created,
	(SELECT count(*) FROM machines m WHERE m.account_id = a.id) FROM accounts a `

// Accounts lists all accounts by name.
func (s *Store) Accounts(ctx context.Context) ([]api.Account, error) {
	rows, err := s.reader.QueryContext(ctx, selectAccounts+`ORDER BY a.name`)
	accounts, err := collect(rows, err, scanAccount)
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	return accounts, nil
}

func scanAccount(scan func(...any) error) (a api.Account, err error) {
	var created int64
	err = scan(&a.ID, &a.Name, &a.Plan, &a.Limit, &created, &a.Machines)
	a.Created = fromMillis(created)
	if a.Limit == 0 {
		a.Limit, _ = Seats(a.Plan)
	}
	return a, err
}

// account finds an account by id or name; CodeNotFound when there is none.
func account(ctx context.Context, tx *sql.Tx, ref string) (api.Account, error) {
	a, err := scanAccount(tx.QueryRowContext(ctx, selectAccounts+`WHERE a.id = $1 OR a.name = $1 ORDER BY a.id = $1 DESC LIMIT 1`, ref).Scan)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return a, livepatch.Errorf(livepatch.CodeNotFound, "there is no account %q", ref)
	case err != nil:
		return a, fmt.Errorf("find account: %w", err)
	}
	return a, nil
}
