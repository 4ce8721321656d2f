package stream_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/blob"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

// next returns the signed change that publishes one more livepatch for k.
func next(repo *streamtest.Repo, k livepatch.Kernel, module string) *stream.Pending {
	_, cat := repo.Catalogue(k.Target())
	cat.Patches = append(cat.Patches, repo.Livepatch(k, uint32(len(cat.Patches)+1), []byte(module)))
	return repo.Change(cat)
}

// TestCrash stops the publisher before each of its durable steps, as kill -9 would,
// and lets another one take over. A client sees the old stream or the new one at
// every moment, and the new one afterwards.
func TestCrash(t *testing.T) {
	t.Parallel()
	crash := errors.New("killed")
	changes := map[string]func(*streamtest.Repo, livepatch.Kernel) *stream.Pending{
		"publish": func(r *streamtest.Repo, k livepatch.Kernel) *stream.Pending { return next(r, k, "the second") },
		"rotate": func(r *streamtest.Repo, _ livepatch.Kernel) *stream.Pending {
			return rotated(t, r, func(set *stream.KeySet) { set.Signing[0] = newKey(t, r) })
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := 0; ; at += stride(at) {
				repo := streamtest.New(t)
				k := kernel()
				repo.Publish(k, []byte("the first"))
				reader := repo.Reader()
				p := change(repo, k)
				step := 0
				repo.Publisher.Step = func(string) error {
					step++
					if step > at {
						return crash
					}
					return nil
				}
				_, err := repo.Publisher.Accept(t.Context(), p.Change)
				if err == nil {
					if at < 5 {
						t.Fatalf("only %d durable steps", at)
					}
					return
				}
				if !errors.Is(err, crash) {
					t.Fatalf("step %d: %v", at, err)
				}
				successor := &stream.Publisher{Store: repo.Store, Keys: repo.Publisher.Keys, Now: repo.Publisher.Now}
				afterCrash(t, repo, successor, reader, k, p.Change, at)
			}
		})
	}
}

// stride leaves out most of the files of a rotation that differ in nothing but their
// name: the bins are signed anew one after the other.
func stride(at int) int {
	if at >= 4 && at < 60 {
		return 14
	}
	return 1
}

func afterCrash(t *testing.T, repo *streamtest.Repo, successor *stream.Publisher, reader *stream.Reader, k livepatch.Kernel, c stream.Change, at int) {
	t.Helper()
	before, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	// Between a new root and the new timestamp a client waits; it never believes
	// anything wrong.
	if err != nil && len(c.Catalogues) > 0 {
		t.Fatalf("crash before step %d: a client finds %v", at, err)
	}
	if err == nil && len(before.Patches) == 0 {
		t.Fatalf("crash before step %d: the first livepatch is gone", at)
	}
	must(t, successor.Finish(t.Context()))
	if _, err := successor.Accept(t.Context(), c); err != nil {
		t.Fatalf("crash before step %d, then again: %v", at, err)
	}
	after, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	if err != nil {
		t.Fatalf("crash before step %d, then again: a client finds %v", at, err)
	}
	if want := 1 + len(c.Catalogues); len(after.Patches) != want {
		t.Errorf("crash before step %d, then again: %d livepatches, want %d", at, len(after.Patches), want)
	}
	res, err := successor.Accept(t.Context(), c)
	must(t, err)
	if res.Changed {
		t.Errorf("crash before step %d: once more changed something", at)
	}
}

// TestFinishAlone finishes what was accepted without being told again, even after
// the metadata in it has expired: it was good when it was accepted.
func TestFinishAlone(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	p := next(repo, k, "a module")
	steps := 0
	repo.Publisher.Step = func(string) error {
		if steps++; steps == 3 {
			return errors.New("killed")
		}
		return nil
	}
	if _, err := repo.Publisher.Accept(t.Context(), p.Change); err == nil {
		t.Fatal("no crash")
	}
	repo.Publisher.Step = nil
	repo.Time = repo.Time.Add(400 * 24 * time.Hour)
	must(t, repo.Publisher.Finish(t.Context()))
	cats, err := repo.Publisher.Catalogues(t.Context())
	must(t, err)
	if len(cats) != 1 || len(cats[0].Patches) != 1 {
		t.Errorf("online are %+v, want the one livepatch", cats)
	}
}

func TestAcceptTells(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	p := next(repo, k, "a module")
	want, err := repo.Publisher.Check(t.Context(), p.Change)
	must(t, err)
	for i, wantChanged := range []bool{true, false, false} {
		got, err := repo.Publisher.Accept(t.Context(), p.Change)
		must(t, err)
		if got.Changed != wantChanged {
			t.Errorf("time %d: Changed = %t", i+1, got.Changed)
		}
		if i == 0 && (len(got.Added) != 1 || got.Added[0].Kernel != k.Target() || len(want.Added) != 1) {
			t.Errorf("Added = %+v, Check said %+v", got.Added, want.Added)
		}
	}
	// An old change that comes again after a newer one does nothing either.
	repo.Publish(k, []byte("the next module"))
	got, err := repo.Publisher.Accept(t.Context(), p.Change)
	must(t, err)
	if got.Changed {
		t.Error("an old change changed something when it came again")
	}
	_, cat := repo.Catalogue(k.Target())
	cat.Patches[0].Withdrawn = &livepatch.Withdrawal{At: repo.Time, Reason: "it oopses"}
	got, err = repo.Publisher.Accept(t.Context(), repo.Change(cat).Change)
	must(t, err)
	if len(got.Withdrawn) != 1 || got.Withdrawn[0].Livepatch.Version != cat.Patches[0].Version || len(got.Added) != 0 {
		t.Errorf("withdrawing gave %+v", got)
	}
}

func TestConflict(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	changes := []*stream.Pending{next(repo, k, "one"), next(repo, k, "another")}
	errs := make([]error, len(changes))
	var wg sync.WaitGroup
	for i, c := range changes {
		wg.Go(func() { _, errs[i] = repo.Publisher.Accept(t.Context(), c.Change) })
	}
	wg.Wait()
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(string(livepatch.CodeOf(a)), string(livepatch.CodeOf(b))) })
	if errs[0] != nil || livepatch.CodeOf(errs[1]) != livepatch.CodeConflict {
		t.Errorf("two at once: %v; want one accepted and one conflict", errs)
	}
}

// TestRefused changes a good change in every way it could be wrong.
func TestRefused(t *testing.T) {
	t.Parallel()
	k := kernel()
	type edit func(t *testing.T, r *streamtest.Repo) stream.Change
	catalogue := func(change func(r *streamtest.Repo, c *livepatch.Catalogue)) edit {
		return func(t *testing.T, r *streamtest.Repo) stream.Change {
			_, cat := r.Catalogue(k.Target())
			// Past what View.SetCatalogue itself refuses: signed by hand.
			return forge(t, r, k.Target(), func(c *livepatch.Catalogue) { *c = cat; change(r, c) })
		}
	}
	for name, c := range map[string]struct {
		make edit
		code livepatch.Code
	}{
		"nothing": {func(*testing.T, *streamtest.Repo) stream.Change { return stream.Change{} }, livepatch.CodeInvalid},
		"server's own role": {func(*testing.T, *streamtest.Repo) stream.Change {
			return stream.Change{Metadata: map[string][]byte{"snapshot.json": []byte("{}")}}
		}, livepatch.CodeInvalid},
		"path": {func(*testing.T, *streamtest.Repo) stream.Change {
			return stream.Change{Metadata: map[string][]byte{"../targets.json": []byte("{}")}}
		}, livepatch.CodeInvalid},
		"junk": {func(*testing.T, *streamtest.Repo) stream.Change {
			return stream.Change{Metadata: map[string][]byte{"targets.json": []byte("{}")}}
		}, livepatch.CodeMetadata},
		"unsigned": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			keys := r.Keys
			r.Keys = nil
			p := next(r, k, "next")
			r.Keys = keys
			return p.Change
		}, livepatch.CodeMetadata},
		"signed by root": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			keys := r.Keys
			r.Keys = keys[:1]
			p := next(r, k, "next")
			r.Keys = keys
			return p.Change
		}, livepatch.CodeMetadata},
		"version skipped": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			c := next(r, k, "next").Change
			bump(t, r, c, 2)
			return c
		}, livepatch.CodeConflict},
		"without its catalogue": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			c := next(r, k, "next").Change
			c.Catalogues = nil
			return c
		}, livepatch.CodeInvalid},
		"another catalogue": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			c := next(r, k, "next").Change
			for path, b := range c.Catalogues {
				c.Catalogues[path] = append(b, ' ')
			}
			return c
		}, livepatch.CodeTampered},
		"catalogue nobody names": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			c := next(r, k, "next").Change
			c.Catalogues["amd64/6.2.0-1-amd64/catalogue.json"] = []byte("{}")
			return c
		}, livepatch.CodeInvalid},
		"expired": {func(t *testing.T, r *streamtest.Repo) stream.Change {
			now := r.Time
			r.Time = now.Add(-2 * 365 * 24 * time.Hour)
			c := next(r, k, "next").Change
			r.Time = now
			return c
		}, livepatch.CodeExpired},
		"livepatch removed": {catalogue(func(_ *streamtest.Repo, c *livepatch.Catalogue) { c.Patches = nil }), livepatch.CodeInvalid},
		"livepatch changed": {catalogue(func(_ *streamtest.Repo, c *livepatch.Catalogue) {
			c.Patches[0].Fixes = []livepatch.Fix{{CVE: "CVE-2020-1111", Priority: livepatch.PriorityLow}}
		}), livepatch.CodeInvalid},
		"archive not uploaded": {catalogue(func(r *streamtest.Repo, c *livepatch.Catalogue) {
			lp := r.Livepatch(k, 2, []byte("next"))
			must(t, r.Store.Delete(t.Context(), stream.StoreName(stream.ArchiveName(lp.Archive.SHA256))))
			c.Patches = append(c.Patches, lp)
		}), livepatch.CodeConflict},
		"archive of another module": {catalogue(func(r *streamtest.Repo, c *livepatch.Catalogue) {
			lp := r.Livepatch(k, 2, []byte("next"))
			lp.Module.SHA256 = strings.Repeat("0", 64)
			c.Patches = append(c.Patches, lp)
		}), livepatch.CodeTampered},
		"source not uploaded": {catalogue(func(r *streamtest.Repo, c *livepatch.Catalogue) {
			lp := r.Livepatch(k, 2, []byte("next"))
			lp.Source = livepatch.Blob{SHA256: strings.Repeat("0", 64), Size: 1}
			c.Patches = append(c.Patches, lp)
		}), livepatch.CodeConflict},
		"another kernel's module": {catalogue(func(r *streamtest.Repo, c *livepatch.Catalogue) {
			lp := r.Livepatch(k, 2, []byte("next"))
			lp.Module.VerMagic = "6.2.0-1-amd64 SMP"
			c.Patches = append(c.Patches, lp)
		}), livepatch.CodeWrongKernel},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repo := streamtest.New(t)
			first := repo.Publish(k, []byte("the first"))
			change := c.make(t, repo)
			before := contents(t, repo)
			_, err := repo.Publisher.Accept(t.Context(), change)
			wantCode(t, err, c.code)
			if !maps.Equal(before, contents(t, repo)) {
				t.Error("a refused change left something in the store")
			}
			cat, err := repo.Reader().Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
			must(t, err)
			if cat.Find(first.Version) == nil || len(cat.Patches) != 1 {
				t.Errorf("the stream is %+v, want it as before", cat.Patches)
			}
		})
	}
}

// contents is what the store holds, by time of writing.
func contents(t *testing.T, r *streamtest.Repo) map[string]string {
	t.Helper()
	infos, err := r.Store.List(t.Context(), "")
	must(t, err)
	out := map[string]string{}
	for _, i := range infos {
		out[i.Name] = i.Modified.String()
	}
	return out
}

// resign parses metadata as plain JSON, edits it, and signs it anew with all keys of
// the repository: what an operator with a broken tool could do.
func resign(t *testing.T, r *streamtest.Repo, b []byte, edit func(signed map[string]any)) []byte {
	t.Helper()
	var m map[string]any
	must(t, json.Unmarshal(b, &m))
	edit(m["signed"].(map[string]any))
	m["signatures"] = []any{}
	b, err := json.Marshal(m)
	must(t, err)
	v, _ := r.Catalogue(kernel().Target())
	p, err := v.SetCatalogue(v.Catalogue(kernel().Target()), "", stream.Lifetimes{}, r.Time)
	must(t, err)
	for file := range p.Metadata {
		p.Metadata = map[string][]byte{file: b}
		_, err = p.Sign(r.Keys)
		must(t, err)
		return p.Metadata[file]
	}
	return nil
}

// bump adds to the version of the one bin in a change.
func bump(t *testing.T, r *streamtest.Repo, c stream.Change, by float64) {
	t.Helper()
	for file, b := range c.Metadata {
		c.Metadata[file] = resign(t, r, b, func(s map[string]any) { s["version"] = s["version"].(float64) + by })
	}
}

// forge makes a signed change with any catalogue at all.
func forge(t *testing.T, r *streamtest.Repo, k livepatch.KernelTarget, edit func(*livepatch.Catalogue)) stream.Change {
	t.Helper()
	v, cat := r.Catalogue(k)
	p, err := v.SetCatalogue(cat, "", stream.Lifetimes{}, r.Time)
	must(t, err)
	edit(&cat)
	b, err := json.Marshal(cat)
	must(t, err)
	path := stream.TargetPath(k)
	p.Catalogues[path] = b
	for file, m := range p.Metadata {
		p.Metadata[file] = resign(t, r, m, func(s map[string]any) {
			target := s["targets"].(map[string]any)[path].(map[string]any)
			target["length"] = len(b)
			target["hashes"] = map[string]any{"sha256": sha(b)}
		})
	}
	return p.Change
}

func TestRenew(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	reader := repo.Reader()
	renewed, at, err := repo.Publisher.Renew(t.Context())
	must(t, err)
	if renewed || !at.After(repo.Time) {
		t.Errorf("fresh metadata: renewed = %t, next at %s", renewed, at)
	}
	// A server that renews when told keeps the stream alive.
	for end := repo.Time.Add(30 * 24 * time.Hour); at.Before(end); {
		repo.Time = at
		if renewed, at, err = repo.Publisher.Renew(t.Context()); err != nil || !renewed {
			t.Fatalf("at %s: renewed = %t, %v", repo.Time, renewed, err)
		}
		if _, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), at.Add(time.Hour)); err != nil {
			t.Fatalf("an hour after the next renewal is due: %v", err)
		}
	}
}

// TestEmptyStream has nothing to serve and nothing to renew, and takes only a first
// root.
func TestEmptyStream(t *testing.T) {
	t.Parallel()
	full := streamtest.New(t)
	store := new(blob.Memory)
	p := &stream.Publisher{Store: store, Keys: full.Publisher.Keys, Now: full.Publisher.Now}
	must(t, p.Finish(t.Context()))
	if renewed, _, err := p.Renew(t.Context()); renewed || err != nil {
		t.Errorf("Renew = %t, %v", renewed, err)
	}
	if trust, err := p.Trust(t.Context()); trust != "" || err != nil {
		t.Errorf("Trust = %q, %v", trust, err)
	}
	_, err := stream.FetchFirstRoot(t.Context(), stream.StoreFetcher{Store: store})
	wantCode(t, err, livepatch.CodeUnavailable)
	_, err = p.Accept(t.Context(), next(full, kernel(), "a module").Change)
	wantCode(t, err, livepatch.CodeConflict)

	// The first root of another server: this one could never sign for it.
	online, err := stream.GenerateOnlineKeys(rand.Reader)
	must(t, err)
	set := full.Set
	set.Online = online.Public()
	first, err := stream.Create(set, full.Keys, stream.Lifetimes{}, full.Time)
	must(t, err)
	_, err = p.Accept(t.Context(), first.Change)
	wantCode(t, err, livepatch.CodeInvalid)
}

// TestWrongKernel signs the catalogue of one kernel at the place of another: neither
// the publisher nor a client of a careless publisher takes it.
func TestWrongKernel(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	other := k
	other.Release = "6.1.0-50-cloud-amd64"
	repo.Publish(other, []byte("for the other kernel"))
	_, cat := repo.Catalogue(other.Target())
	c := forge(t, repo, k.Target(), func(c *livepatch.Catalogue) { *c = cat })
	_, err := repo.Publisher.Accept(t.Context(), c)
	wantCode(t, err, livepatch.CodeWrongKernel)
	for _, b := range c.Catalogues {
		_, err = stream.ParseCatalogue(b, k.Target())
		wantCode(t, err, livepatch.CodeWrongKernel)
	}
}
