package stream_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

// stolen is a server in wrong hands: it has snapshot and timestamp keys and every
// file that was ever public, and signs whatever it likes with them.
type stolen struct {
	repo *streamtest.Repo
	// files are served in the place of what the repository has.
	files map[string][]byte
}

// seal signs a snapshot that was edited, and a timestamp for it.
func (s stolen) seal(t *testing.T, files map[string][]byte, edit func(meta map[string]any)) {
	t.Helper()
	keys := s.repo.Publisher.Keys
	for name, b := range files {
		if !strings.HasSuffix(name, ".snapshot.json") {
			continue
		}
		snapshot, err := stream.Forge(b, keys.Snapshot, func(signed map[string]any) {
			signed["version"] = 1000
			edit(signed["meta"].(map[string]any))
		})
		must(t, err)
		timestamp, err := stream.Forge(files["metadata/timestamp.json"], keys.Timestamp, func(signed map[string]any) {
			signed["version"] = 1000
			signed["meta"] = map[string]any{"snapshot.json": map[string]any{
				"version": 1000, "length": len(snapshot), "hashes": map[string]any{"sha256": sha(snapshot)},
			}}
		})
		must(t, err)
		s.files["metadata/1000.snapshot.json"] = snapshot
		s.files["metadata/timestamp.json"] = timestamp
	}
}

// TestStolenServer follows a server in wrong hands. It can withhold; it cannot make
// a client believe what was not signed offline, nor what no longer is.
func TestStolenServer(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	first := repo.Publish(k, []byte("a module"))
	client := repo.Reader()
	old := map[string][]byte{}
	_, err := repo.Reader().Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: record(old)}, k.Target(), repo.Time)
	must(t, err)
	_, err = client.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	repo.Withdraw(k.Target(), first.Version, "it oopses")
	repo.Accept(rotated(t, repo, func(s *stream.KeySet) { s.Signing[0] = newKey(t, repo) }))
	now := map[string][]byte{}
	_, err = repo.Reader().Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: record(now)}, k.Target(), repo.Time)
	must(t, err)
	var bin string
	for name := range old {
		if _, role, ok := strings.Cut(name, ".kernels-"); ok {
			bin = "kernels-" + role
		}
	}

	for name, edit := range map[string]func(meta map[string]any){
		// The client keeps this very bin; it is signed by a key that is trusted no more.
		"old bin under new keys": func(meta map[string]any) {
			for name, b := range old {
				if strings.HasSuffix(name, bin) {
					meta[bin] = map[string]any{"version": version(t, name), "length": len(b), "hashes": map[string]any{"sha256": sha(b)}}
				}
			}
		},
		"bin left out": func(meta map[string]any) { delete(meta, bin) },
		"another bin in its place": func(meta map[string]any) {
			meta[bin] = meta["targets.json"]
		},
		"no hashes": func(meta map[string]any) {
			meta[bin] = map[string]any{"version": 1}
		},
		"null": func(meta map[string]any) { meta[bin] = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			thief := stolen{repo, map[string][]byte{}}
			thief.seal(t, now, edit)
			srv := overlay{repo.Fetcher(), thief.files}
			for what, reader := range map[string]*stream.Reader{"a new client": repo.Reader(), "one that was there before": client} {
				cat, err := reader.Refresh(t.Context(), srv, k.Target(), repo.Time)
				if err == nil {
					t.Errorf("%s believes %+v", what, cat)
					continue
				}
				wantCode(t, err, livepatch.CodeMetadata, livepatch.CodeTampered, livepatch.CodeRollback)
			}
		})
	}
}

// TestNewRootIsKeptAtOnce: the server's keys are stolen and replaced. A check that is
// cut off right after the new root has come to know it for good: the thief, who
// hides that root from the next check, is not believed, and what was kept is good
// for a boot until a check works again.
func TestNewRootIsKeptAtOnce(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := kernel()
	repo.Publish(k, []byte("a module"))
	dir := t.TempDir()
	root, err := stream.FetchFirstRoot(t.Context(), repo.Fetcher())
	must(t, err)
	reader, err := stream.Trust(dir, root, "", "tls")
	must(t, err)
	_, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	now := map[string][]byte{}
	_, err = repo.Reader().Refresh(t.Context(), &server{Fetcher: repo.Fetcher(), answer: record(now)}, k.Target(), repo.Time)
	must(t, err)
	thief := stolen{repo, map[string][]byte{}}
	thief.seal(t, now, func(map[string]any) {})

	fresh, err := stream.GenerateOnlineKeys(rand.Reader)
	must(t, err)
	repo.Publisher.Spare = []stream.OnlineKeys{fresh}
	repo.Accept(rotated(t, repo, func(s *stream.KeySet) { s.Online = fresh.Public() }))
	cut := errors.New("connection reset")
	_, err = reader.Refresh(t.Context(), &cutting{Fetcher: repo.Fetcher(), after: 1, err: cut}, k.Target(), repo.Time)
	if !errors.Is(err, cut) {
		t.Fatalf("the check was not cut off: %v", err)
	}

	reader, err = stream.Open(dir)
	must(t, err)
	_, err = reader.Cached(k.Target())
	must(t, err)
	hidden := &server{Fetcher: overlay{repo.Fetcher(), thief.files}, answer: func(name string, b []byte) []byte {
		if strings.HasSuffix(name, "root.json") {
			return nil
		}
		return b
	}}
	_, err = reader.Refresh(t.Context(), hidden, k.Target(), repo.Time)
	wantCode(t, err, livepatch.CodeMetadata, livepatch.CodeTampered)
	_, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	_, err = reader.Cached(k.Target())
	must(t, err)
}

// version reads the number in "metadata/3.kernels-2a.json".
func version(t *testing.T, name string) (v int) {
	t.Helper()
	if _, err := fmt.Sscanf(name, "metadata/%d.", &v); err != nil {
		t.Fatal(err)
	}
	return v
}
