package stream_test

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

// newKey makes a key that the repository can sign with from now on.
func newKey(t *testing.T, r *streamtest.Repo) stream.PublicKey {
	t.Helper()
	k, err := stream.GenerateKey(rand.Reader)
	must(t, err)
	r.Keys = append(r.Keys, k)
	return k.Public()
}

// rotated returns the signed change to an edited set of keys.
func rotated(t *testing.T, r *streamtest.Repo, edit func(*stream.KeySet)) *stream.Pending {
	t.Helper()
	v := view(t, r)
	set, err := v.Keys()
	must(t, err)
	edit(&set)
	p, err := v.Rotate(set, "test", stream.Lifetimes{}, r.Time)
	must(t, err)
	_, err = p.Sign(r.Keys)
	must(t, err)
	return p
}

// view is a whole view by a new operator.
func view(t *testing.T, r *streamtest.Repo) *stream.View {
	t.Helper()
	v, err := r.Reader().View(t.Context(), r.Fetcher())
	must(t, err)
	return v
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k, err := stream.GenerateKey(rand.Reader)
	must(t, err)
	path := filepath.Join(dir, "root-1.pem")
	must(t, stream.WriteKey(path, k))
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key file is %v, %v; want readable by its owner only", fi.Mode(), err)
	}
	wantCode(t, stream.WriteKey(path, k), livepatch.CodeConflict)
	keys, err := stream.LoadKeys(dir)
	must(t, err)
	if len(keys) != 1 || keys[0].ID() != k.ID() {
		t.Error("the key read is not the one written")
	}
	_, err = stream.LoadKeys(t.TempDir())
	wantCode(t, err, livepatch.CodeNotFound)
	for _, junk := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		_, err = stream.ParseKey([]byte(junk))
		wantCode(t, err, livepatch.CodeInvalid)
	}
	var p stream.PublicKey
	wantCode(t, p.UnmarshalText([]byte("abcd")), livepatch.CodeInvalid)
	for _, junk := range []string{"", "{}", `{"snapshot":"00"}`} {
		_, err = stream.ParseOnlinePublic([]byte(junk))
		wantCode(t, err, livepatch.CodeInvalid)
	}
}

func TestKeySetRefuses(t *testing.T) {
	t.Parallel()
	good := streamtest.New(t).Set
	must(t, good.Validate())
	for name, edit := range map[string]func(*stream.KeySet){
		"no threshold":           func(s *stream.KeySet) { s.RootThreshold = 0 },
		"threshold beyond keys":  func(s *stream.KeySet) { s.SigningThreshold = 2 },
		"one key, two purposes":  func(s *stream.KeySet) { s.Signing = s.Root },
		"server's key signs too": func(s *stream.KeySet) { s.Signing = []stream.PublicKey{s.Online.Snapshot} },
		"missing key":            func(s *stream.KeySet) { s.Online.Timestamp = stream.PublicKey{} },
	} {
		set := good
		edit(&set)
		if livepatch.CodeOf(set.Validate()) != livepatch.CodeInvalid {
			t.Errorf("%s was accepted", name)
		}
	}
}

// TestThreshold publishes with two of three keys: one alone does not do, and the
// pending file goes from hand to hand.
func TestThreshold(t *testing.T) {
	t.Parallel()
	repo := streamtest.NewWith(t, 3, 2, 3, 2)
	k := kernel()
	all := repo.Keys
	repo.Keys = all[3:4] // one signing key
	p := next(repo, k, "a module")
	missing, err := p.Missing()
	must(t, err)
	if len(missing) != 1 || missing[0].Have != 1 || missing[0].Need != 2 || len(missing[0].KeyIDs) != 2 {
		t.Fatalf("Missing = %+v, want one signature of two other keys", missing)
	}
	_, err = repo.Publisher.Accept(t.Context(), p.Change)
	wantCode(t, err, livepatch.CodeMetadata)

	b, err := json.Marshal(p)
	must(t, err)
	second, err := stream.ParsePending(b)
	must(t, err)
	v, _ := repo.Catalogue(k.Target())
	shown, err := v.Review(second)
	must(t, err)
	if len(shown.Added) != 1 || shown.Added[0].Kernel != k.Target() || shown.Keys != nil {
		t.Errorf("the second person is shown %+v", shown)
	}
	// Root keys and the key that signed already add nothing.
	if n, err := second.Sign(all[:4]); n != 0 || err != nil {
		t.Errorf("keys that do not count added %d signatures (%v)", n, err)
	}
	if n, err := second.Sign(all[5:]); n != 1 || err != nil {
		t.Errorf("the second person added %d signatures (%v)", n, err)
	}
	repo.Accept(second)
	cat, err := repo.Reader().Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	if len(cat.Patches) != 1 {
		t.Error("what two people signed is not online")
	}
}

// TestRotation replaces keys while clients follow: those who were away follow the
// chain of roots, what the old keys sign is worth nothing, and a kept state from
// before stays usable until then.
func TestRotation(t *testing.T) {
	t.Parallel()
	repo := streamtest.NewWith(t, 3, 2, 1, 1)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	away := repo.Reader()
	_, err := away.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	stolen := repo.Keys[3]
	pre := next(repo, k, "signed with the stolen key, before")

	repo.Accept(rotated(t, repo, func(s *stream.KeySet) { s.Signing[0] = newKey(t, repo) }))
	repo.Accept(rotated(t, repo, func(s *stream.KeySet) { s.Root[0] = newKey(t, repo); s.Root[1] = newKey(t, repo) }))
	repo.Accept(rotated(t, repo, func(s *stream.KeySet) {
		s.Signing = append(s.Signing, newKey(t, repo))
		s.SigningThreshold = 2
	}))
	if v := view(t, repo).RootVersion(); v != 4 {
		t.Errorf("root version %d, want 4", v)
	}

	_, err = repo.Publisher.Accept(t.Context(), pre.Change)
	wantCode(t, err, livepatch.CodeConflict, livepatch.CodeMetadata)
	v, cat := repo.Catalogue(k.Target())
	cat.Patches = append(cat.Patches, repo.Livepatch(k, 2, []byte("signed with the stolen key, after")))
	p, err := v.SetCatalogue(cat, "", stream.Lifetimes{}, repo.Time)
	must(t, err)
	if n, _ := p.Sign([]stream.Key{stolen}); n != 0 {
		t.Error("a key that is trusted no more was used")
	}
	_, err = repo.Publisher.Accept(t.Context(), p.Change)
	wantCode(t, err, livepatch.CodeMetadata)

	if _, err := away.Cached(k.Target()); err != nil {
		t.Errorf("at boot before the network: %v", err)
	}
	repo.Publish(k, []byte("signed by two new keys"))
	got, err := away.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	if len(got.Patches) != 2 {
		t.Errorf("a client that was away sees %d livepatches, want 2", len(got.Patches))
	}
	if _, err := away.Cached(k.Target()); err != nil {
		t.Errorf("after following: %v", err)
	}
}

// TestRotationNeedsOldRoots refuses a root that only its own keys signed.
func TestRotationNeedsOldRoots(t *testing.T) {
	t.Parallel()
	repo := streamtest.NewWith(t, 3, 2, 1, 1)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	trusted := repo.Keys
	p := rotated(t, repo, func(s *stream.KeySet) {
		repo.Keys = trusted[:1] // one root key is in the attacker's hands
		s.Root = []stream.PublicKey{newKey(t, repo)}
		s.RootThreshold = 1
		s.Signing = []stream.PublicKey{newKey(t, repo)}
	})
	if missing, err := p.Missing(); err != nil || len(missing) == 0 {
		t.Errorf("Missing = %+v, %v", missing, err)
	}
	_, err := repo.Publisher.Accept(t.Context(), p.Change)
	wantCode(t, err, livepatch.CodeMetadata)

	// The same through a stolen server: clients refuse it themselves.
	srv := &server{Fetcher: rooted{repo.Fetcher(), p.Metadata["2.root.json"]}}
	_, err = repo.Reader().Refresh(t.Context(), srv, k.Target(), repo.Time)
	wantCode(t, err, livepatch.CodeMetadata)
}

// TestRotationSignsBinsAnew refuses new signing keys without all bins signed by
// them: clients would be cut off.
func TestRotationSignsBinsAnew(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	p := rotated(t, repo, func(s *stream.KeySet) { s.Signing[0] = newKey(t, repo) })
	for _, leave := range []string{"kernels-2a.json", "targets.json"} {
		c := stream.Change{Metadata: map[string][]byte{}}
		for name, b := range p.Metadata {
			if name != leave {
				c.Metadata[name] = b
			}
		}
		_, err := repo.Publisher.Accept(t.Context(), c)
		wantCode(t, err, livepatch.CodeMetadata)
	}
}

func TestRenewOffline(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	reader := repo.Reader()
	// So late that everything signed offline has expired: still renewable.
	repo.Time = repo.Time.Add(370 * 24 * time.Hour)
	_, _, err := repo.Publisher.Renew(t.Context())
	must(t, err)
	_, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	wantCode(t, err, livepatch.CodeExpired)

	v := view(t, repo)
	p, err := v.Renew("renew", stream.Lifetimes{}, repo.Time)
	must(t, err)
	_, err = p.Sign(repo.Keys)
	must(t, err)
	repo.Accept(p)
	_, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	for role, at := range view(t, repo).Expiries() {
		if !at.After(repo.Time) {
			t.Errorf("%s has expired after the renewal", role)
		}
	}
}

// TestRotateOnline replaces the server's own keys: clients follow, and what the old
// ones sign is worth nothing.
func TestRotateOnline(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	reader := repo.Reader()
	_, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	old := repo.Publisher.Keys
	fresh, err := stream.GenerateOnlineKeys(rand.Reader)
	must(t, err)
	change := rotated(t, repo, func(s *stream.KeySet) { s.Online = fresh.Public() })
	_, err = repo.Publisher.Accept(t.Context(), change.Change)
	wantCode(t, err, livepatch.CodeInvalid) // the server does not have them yet
	repo.Publisher.Spare = []stream.OnlineKeys{fresh}
	repo.Accept(change)
	repo.Publisher.Keys, repo.Publisher.Spare = fresh, nil
	repo.Publish(k, []byte("the next module"))
	cat, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	if len(cat.Patches) != 2 {
		t.Errorf("%d livepatches after the rotation, want 2", len(cat.Patches))
	}
	repo.Publisher.Keys = old
	repo.Time = repo.Time.Add(23 * time.Hour)
	_, _, err = repo.Publisher.Renew(t.Context())
	wantCode(t, err, livepatch.CodeInvalid)
}
