package stream_test

import (
	"testing"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

// TestReview shows the second of two key holders what a change does, and refuses
// one that does more than it shows: the first key holder and the server may be in
// the same wrong hands.
func TestReview(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	first := repo.Publish(k, []byte("the first"))
	v, _ := repo.Catalogue(k.Target())

	shown, err := v.Review(next(repo, k, "the second"))
	must(t, err)
	if len(shown.Added) != 1 || shown.Added[0].Livepatch.Version.Major != 2 {
		t.Errorf("publishing is shown as %+v", shown)
	}
	_, cat := repo.Catalogue(k.Target())
	cat.Find(first.Version).Withdrawn = &livepatch.Withdrawal{At: repo.Time, Reason: "it oopses"}
	shown, err = v.Review(repo.Change(cat))
	must(t, err)
	if len(shown.Withdrawn) != 1 || len(shown.Added) != 0 {
		t.Errorf("withdrawing is shown as %+v", shown)
	}

	whole := view(t, repo)
	shown, err = whole.Review(rotated(t, repo, func(*stream.KeySet) {}))
	must(t, err)
	if shown.Keys != nil || shown.Renewed != 66 {
		t.Errorf("renewing is shown as %+v, want 66 files signed anew", shown)
	}
	shown, err = whole.Review(rotated(t, repo, func(s *stream.KeySet) { s.Signing[0] = newKey(t, repo) }))
	must(t, err)
	if shown.Keys == nil || shown.Keys.Signing[0] != repo.Keys[len(repo.Keys)-1].Public() {
		t.Errorf("a new signing key is shown as %+v", shown)
	}

	hidden := next(repo, k, "hidden")
	for path := range hidden.Catalogues {
		delete(hidden.Catalogues, path)
	}
	_, err = v.Review(hidden)
	wantCode(t, err, livepatch.CodeInvalid)

	old := next(repo, k, "too late")
	repo.Publish(k, []byte("meanwhile"))
	v, _ = repo.Catalogue(k.Target())
	_, err = v.Review(old)
	wantCode(t, err, livepatch.CodeConflict)

	removed := forge(t, repo, k.Target(), func(c *livepatch.Catalogue) { c.Patches = nil })
	_, err = v.Review(&stream.Pending{Change: removed})
	wantCode(t, err, livepatch.CodeInvalid)
}
