package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

func wantCode(t *testing.T, err error, codes ...livepatch.Code) {
	t.Helper()
	if got := livepatch.CodeOf(err); !slices.Contains(codes, got) {
		t.Errorf("code %q (%v), want one of %q", got, err, codes)
	}
}

// TestTampering changes one byte of every file that a new client reads: each time
// it refuses, keeps nothing of it, and goes on when the file is right again.
func TestTampering(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	lp := repo.Publish(k, []byte("a module"))
	files := map[string][]byte{}
	srv := &server{Fetcher: repo.Fetcher(), answer: record(files)}
	_, err := repo.Reader().Refresh(t.Context(), srv, k.Target(), repo.Time)
	must(t, err)
	if len(files) != 5 {
		t.Fatalf("a new client read %v, want timestamp, snapshot, targets, one bin, one catalogue", slices.Collect(maps.Keys(files)))
	}
	for name := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reader := repo.Reader()
			for _, at := range []int{len(files[name]) / 3, len(files[name]) / 2, len(files[name]) - 10} {
				bad := &server{Fetcher: repo.Fetcher(), answer: func(n string, b []byte) []byte {
					if n == name {
						b[at] ^= 1
					}
					return b
				}}
				_, err := reader.Refresh(t.Context(), bad, k.Target(), repo.Time)
				wantCode(t, err, livepatch.CodeTampered, livepatch.CodeMetadata)
			}
			_, err := reader.Cached(k.Target())
			wantCode(t, err, livepatch.CodeNotFound)
			cat, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
			must(t, err)
			if cat.Find(lp.Version) == nil {
				t.Error("after the file was right again the livepatch is missing")
			}
		})
	}
}

// TestIncomplete withholds, cuts short and inflates every file.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	files := map[string][]byte{}
	_, err := repo.Reader().Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: record(files)}, k.Target(), repo.Time)
	must(t, err)
	for name := range files {
		for what, change := range map[string]func([]byte) []byte{
			"missing":   func([]byte) []byte { return nil },
			"empty":     func([]byte) []byte { return []byte{} },
			"cut short": func(b []byte) []byte { return b[:len(b)/2] },
			"endless":   func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 8<<20)...) },
			"null":      func([]byte) []byte { return []byte("null") },
			"hostile": func([]byte) []byte {
				return []byte(`{"signed":{"_type":"timestamp","meta":{"snapshot.json":null},"version":1.5},"signatures":[{"keyid":"x","sig":"0"}]}`)
			},
		} {
			srv := &server{Fetcher: repo.Fetcher(), answer: func(n string, b []byte) []byte {
				if n == name {
					return change(b)
				}
				return b
			}}
			if _, err := repo.Reader().Refresh(t.Context(), srv, k.Target(), repo.Time); err == nil {
				t.Errorf("%s %s was accepted", name, what)
			} else if name == "metadata/timestamp.json" && what == "missing" {
				wantCode(t, err, livepatch.CodeUnavailable) // an empty stream looks so
			} else {
				wantCode(t, err, livepatch.CodeTampered, livepatch.CodeMetadata)
			}
		}
	}
}

// replay returns an answer that serves old files where there are any of the names.
func replay(old map[string][]byte, names ...string) func(string, []byte) []byte {
	return func(name string, b []byte) []byte {
		for _, n := range names {
			if strings.HasSuffix(name, n) && old[name] != nil {
				return bytes.Clone(old[name])
			}
		}
		return b
	}
}

func TestRollback(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	first := repo.Publish(k, []byte("a module"))
	old := map[string][]byte{}
	reader := repo.Reader()
	_, err := reader.Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: record(old)}, k.Target(), repo.Time)
	must(t, err)
	repo.Withdraw(k.Target(), first.Version, "it oopses")
	_, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)

	// A whole older stream, still signed and not expired: the withdrawal would be
	// undone.
	_, err = reader.Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: replay(old, "timestamp.json")}, k.Target(), repo.Time)
	wantCode(t, err, livepatch.CodeRollback)
	cat, err := reader.Cached(k.Target())
	must(t, err)
	if cat.Latest(k) != nil {
		t.Error("the rollback brought the withdrawn livepatch back")
	}
}

// TestMixAndMatch gives old files under new ones: each is signed, together they
// never were.
func TestMixAndMatch(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	first := repo.Publish(k, []byte("a module"))
	old := map[string][]byte{}
	_, err := repo.Reader().Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: record(old)}, k.Target(), repo.Time)
	must(t, err)
	repo.Withdraw(k.Target(), first.Version, "it oopses")

	for _, role := range []string{"snapshot.json", ".kernels-", "catalogue.json"} {
		srv := &server{Fetcher: repo.Fetcher(), answer: func(name string, b []byte) []byte {
			for n, was := range old {
				if strings.Contains(name, role) && strings.Contains(n, role) {
					return bytes.Clone(was)
				}
			}
			return b
		}}
		_, err := repo.Reader().Refresh(t.Context(), srv, k.Target(), repo.Time)
		wantCode(t, err, livepatch.CodeTampered, livepatch.CodeMetadata)
	}
}

// TestExpiry freezes the stream: what is kept stays usable, nothing new is believed.
func TestExpiry(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	reader := repo.Reader()
	_, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)

	later := repo.Time.Add(25 * time.Hour)
	_, err = reader.Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), date: later}, k.Target(), later)
	wantCode(t, err, livepatch.CodeExpired)

	// The same, but the server's clock differs from ours by a day: the clock is it.
	_, err = reader.Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), date: repo.Time}, k.Target(), later)
	wantCode(t, err, livepatch.CodeClock)
	if err != nil && !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("%q does not say what to do", err)
	}

	if _, err := reader.Cached(k.Target()); err != nil {
		t.Errorf("at boot, long after: %v", err)
	}

	// The server renews: everything goes on.
	repo.Time = later
	renewed, _, err := repo.Publisher.Renew(t.Context())
	must(t, err)
	if !renewed {
		t.Error("an expired timestamp was not renewed")
	}
	if _, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), later); err != nil {
		t.Errorf("after the renewal: %v", err)
	}
}

// TestNotModified follows an unchanged stream over HTTP: two small requests.
func TestNotModified(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	lp := repo.Publish(k, []byte("a module"))
	httpServer := repo.Serve()
	srv := &server{Fetcher: stream.HTTPFetcher{Client: httpServer.Client(), Base: httpServer.URL}}
	reader := repo.Reader()
	for range 3 {
		cat, err := reader.Refresh(t.Context(), srv, k.Target(), repo.Time)
		must(t, err)
		if cat.Find(lp.Version) == nil {
			t.Error("the livepatch is missing")
		}
	}
	for suffix, want := range map[string]int{"2.root.json": 3, "timestamp.json": 3, "snapshot.json": 1, "targets.json": 1, "catalogue.json": 1} {
		if got := srv.times(suffix); got != want {
			t.Errorf("%s was fetched %d times in three checks, want %d", suffix, got, want)
		}
	}
	// 304 does not hide that what is kept has expired.
	later := repo.Time.Add(25 * time.Hour)
	_, err := reader.Refresh(t.Context(), srv, k.Target(), later)
	wantCode(t, err, livepatch.CodeExpired, livepatch.CodeClock)
}

func TestTrust(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	root, err := stream.FetchFirstRoot(t.Context(), repo.Fetcher())
	must(t, err)
	trust, err := repo.Publisher.Trust(t.Context())
	must(t, err)

	dir := t.TempDir()
	_, err = stream.Open(dir)
	wantCode(t, err, livepatch.CodeNotEnabled)
	_, err = stream.Trust(dir, root, "sha256:"+strings.Repeat("0", 64), "fingerprint")
	wantCode(t, err, livepatch.CodeMetadata)
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Error("a root with the wrong fingerprint was kept")
	}
	for _, junk := range []string{"", "{}", "null", `{"signed":{"_type":"root"}}`, strings.Replace(string(root), `"threshold":1`, `"threshold":0`, 1)} {
		_, err = stream.Trust(dir, []byte(junk), "", "tls")
		wantCode(t, err, livepatch.CodeMetadata)
	}
	_, err = stream.Trust(dir, root, trust, "fingerprint")
	must(t, err)
	r, err := stream.Open(dir)
	must(t, err)
	if first, how := r.First(); first != trust || how != "fingerprint" {
		t.Errorf("First = %s, %s", first, how)
	}
}

// TestStateSurvives reopens the folder as after kill -9, with what was known.
func TestStateSurvives(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	lp := repo.Publish(k, []byte("a module"))
	root, err := stream.FetchFirstRoot(t.Context(), repo.Fetcher())
	must(t, err)
	dir := t.TempDir()
	r, err := stream.Trust(dir, root, "", "tls")
	must(t, err)
	_, err = r.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)

	// Enabling again with the same root forgets nothing.
	for _, reopen := range []func() (*stream.Reader, error){
		func() (*stream.Reader, error) { return stream.Open(dir) },
		func() (*stream.Reader, error) { return stream.Trust(dir, root, "", "tls") },
	} {
		r, err := reopen()
		must(t, err)
		cat, err := r.Cached(k.Target())
		must(t, err)
		if cat.Find(lp.Version) == nil {
			t.Error("the livepatch is missing after reopening")
		}
	}

	// Somebody changes what is kept: it is not believed.
	file := filepath.Join(dir, "stream.json")
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, b[:len(b)/2], 0o600))
	_, err = stream.Open(dir)
	wantCode(t, err, livepatch.CodeDisk)
}

// TestKeptIsVerified changes each part of the kept state: Cached refuses it, and
// the next check with the server mends it.
func TestKeptIsVerified(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	for _, part := range []string{"timestamp", "snapshot", "targets", "bin", "catalogue"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			root, err := stream.FetchFirstRoot(t.Context(), repo.Fetcher())
			must(t, err)
			r, err := stream.Trust(dir, root, "", "tls")
			must(t, err)
			_, err = r.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
			must(t, err)
			spoil(t, filepath.Join(dir, "stream.json"), part)
			r, err = stream.Open(dir)
			must(t, err)
			_, err = r.Cached(k.Target())
			wantCode(t, err, livepatch.CodeTampered, livepatch.CodeMetadata)
			_, err = r.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
			must(t, err)
			_, err = r.Cached(k.Target())
			must(t, err)
		})
	}
}

// TestUnreachable breaks the connection at each request of a check: what is kept
// stays, and the transport's error comes through.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	reader := repo.Reader()
	_, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	repo.Publish(k, []byte("the next module"))
	broken := errors.New("connection reset")
	for n := range 5 { // root, timestamp, snapshot, bin, catalogue
		srv := &cutting{Fetcher: repo.Fetcher(), after: n, err: broken}
		if _, err := reader.Refresh(t.Context(), srv, k.Target(), repo.Time); !errors.Is(err, broken) {
			t.Errorf("cut after %d requests: %v, want the transport's error", n, err)
		}
		cat, err := reader.Cached(k.Target())
		must(t, err)
		if len(cat.Patches) != 1 {
			t.Errorf("cut after %d requests: %d livepatches are kept, want the one known before", n, len(cat.Patches))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reader.Refresh(ctx, &server{Fetcher: repo.Fetcher()}, k.Target(), repo.Time); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// cutting fails from the request after so many on.
type cutting struct {
	stream.Fetcher
	after int
	err   error
}

func (c *cutting) Fetch(ctx context.Context, name, etag string) (stream.Fetched, error) {
	if c.after == 0 {
		got, err := c.Fetcher.Fetch(ctx, name, etag)
		if err != nil {
			return stream.Fetched{}, c.err
		}
		got.Body = io.NopCloser(io.MultiReader(io.LimitReader(got.Body, 10), failing{c.err}))
		return got, nil
	}
	c.after--
	return c.Fetcher.Fetch(ctx, name, etag)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestDiskFull cannot save the new state: the check fails and says so, and the old
// state stays.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	root, err := stream.FetchFirstRoot(t.Context(), repo.Fetcher())
	must(t, err)
	dir := filepath.Join(t.TempDir(), "state")
	r, err := stream.Trust(dir, root, "", "tls")
	must(t, err)
	_, err = r.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	repo.Publish(k, []byte("the next module"))
	// Root may write where it must not, so the folder goes away instead.
	must(t, os.Rename(dir, dir+".away"))
	_, err = r.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	wantCode(t, err, livepatch.CodeDisk)
	cat, err := r.Cached(k.Target())
	must(t, err)
	if len(cat.Patches) != 1 {
		t.Error("what could not be saved is offered all the same")
	}
	must(t, os.Rename(dir+".away", dir))
	_, err = r.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
}

// TestSeveralKernels keeps the catalogues of other kernels while they are current.
func TestSeveralKernels(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	var kernels []livepatch.Kernel
	for i := range 5 {
		k := kernel()
		k.Release = fmt.Sprintf("6.1.0-%d-amd64", i)
		kernels = append(kernels, k)
		repo.Publish(k, []byte("module for "+k.Release))
	}
	reader := repo.Reader()
	for _, k := range kernels {
		_, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
		must(t, err)
	}
	for _, k := range kernels {
		cat, err := reader.Cached(k.Target())
		must(t, err)
		if cat.Kernel != k.Target() {
			t.Errorf("%s got the catalogue of %s", k.Release, cat.Kernel)
		}
	}
	repo.Publish(kernels[0], []byte("newer"))
	_, err := reader.Refresh(t.Context(), repo.Fetcher(), kernels[1].Target(), repo.Time)
	must(t, err)
	if _, err := reader.Cached(kernels[1].Target()); err != nil {
		t.Error(err)
	}
	_, err = reader.Cached(kernels[0].Target())
	wantCode(t, err, livepatch.CodeNotFound)
}
