package store_test

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/store"
)

// model is what the seats of one account should be.
type model struct {
	limit  int
	seats  map[int]string // machine number: id
	tokens []modelToken
}

type modelToken struct {
	id, secret string
	max, uses  int
	revoked    bool
}

// want is the code that enrolling machine n with token i should give.
func (m *model) want(n, i int) livepatch.Code {
	tok := m.tokens[i]
	_, seated := m.seats[n]
	switch {
	case tok.revoked:
		return livepatch.CodeTokenRevoked
	case seated:
		return ""
	case tok.max > 0 && tok.uses >= tok.max:
		return livepatch.CodeTokenUsed
	case len(m.seats) >= m.limit:
		return livepatch.CodeSeatLimit
	}
	return ""
}

// TestSeatsModel holds seats and tokens against a model over random histories.
func TestSeatsModel(t *testing.T) {
	t.Parallel()
	s, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), "server.db"), newClock().now)
	must(t, err)
	defer s.Close()
	ctx, accounts, machines := context.Background(), 0, 0
	rapid.Check(t, func(t *rapid.T) {
		accounts++
		machines += 10
		first := machines
		m := &model{limit: rapid.IntRange(1, 4).Draw(t, "limit"), seats: map[int]string{}}
		a, err := s.CreateAccount(ctx, "test", api.NewAccount{Name: fmt.Sprint("a", accounts), Limit: m.limit})
		must(t, err)
		token := func(t *rapid.T) {
			limit := rapid.IntRange(0, 3).Draw(t, "max uses")
			tok, secret, err := s.CreateToken(ctx, "test", api.NewToken{Account: a.ID, MaxUses: limit})
			must(t, err)
			m.tokens = append(m.tokens, modelToken{id: tok.ID, secret: secret, max: limit})
		}
		token(t)
		pick := func(t *rapid.T) int { return rapid.IntRange(0, len(m.tokens)-1).Draw(t, "token") }
		t.Repeat(map[string]func(*rapid.T){
			"token": token,
			"enrol": func(t *rapid.T) {
				n, i := first+rapid.IntRange(0, 7).Draw(t, "machine"), pick(t)
				want := m.want(n, i)
				got, created, err := s.Enrol(ctx, enrolment(m.tokens[i].secret, n))
				if livepatch.CodeOf(err) != want {
					t.Fatalf("enrol: %v, want code %q", err, want)
				}
				if err != nil {
					return
				}
				if before, seated := m.seats[n]; seated == created || seated && before != got.ID {
					t.Fatalf("machine %d had seat %q and got %s (new: %v)", n, before, got.ID, created)
				}
				if created {
					m.tokens[i].uses++
				}
				m.seats[n] = got.ID
			},
			"remove": func(t *rapid.T) {
				if len(m.seats) == 0 {
					t.Skip("no machine")
				}
				n := rapid.SampledFrom(slices.Sorted(maps.Keys(m.seats))).Draw(t, "machine")
				_, err := s.RemoveMachine(ctx, "test", m.seats[n])
				must(t, err)
				delete(m.seats, n)
			},
			"revoke": func(t *rapid.T) {
				i := pick(t)
				must(t, s.RevokeToken(ctx, "test", m.tokens[i].id))
				m.tokens[i].revoked = true
			},
			"": func(t *rapid.T) {
				all, err := s.Machines(ctx, api.MachineFilter{Account: a.ID}, "", 100)
				must(t, err)
				if len(all) != len(m.seats) || len(all) > m.limit {
					t.Fatalf("%d machines, want %d of %d", len(all), len(m.seats), m.limit)
				}
			},
		})
	})
}
