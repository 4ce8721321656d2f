package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/stream"
)

// change signs a publication of one more livepatch and uploads what it names.
func (f *fixture) change(t testing.TB, k livepatch.Kernel, module string) api.Publication {
	t.Helper()
	_, cat := f.repo.Catalogue(k.Target())
	cat.Patches = append(cat.Patches, f.repo.Livepatch(k, uint32(len(cat.Patches)+1), []byte(module)))
	return api.Publication(f.repo.Change(cat).Change)
}

// online is what a new machine that reads the stream learns of the kernel.
func (f *fixture) online(t testing.TB) int {
	t.Helper()
	cat, err := f.repo.Reader().Refresh(t.Context(), f.repo.Fetcher(), kernel.Target(), time.Now())
	if livepatch.CodeOf(err) == livepatch.CodeUnsupported {
		return 0
	}
	must(t, err)
	return len(cat.Patches)
}

func TestPublicationSurvivesACrashAtEveryStep(t *testing.T) {
	t.Parallel()
	crash := errors.New("crash")
	for step := 0; ; step++ {
		f := newServer(t, nil)
		p := f.change(t, kernel, "one")
		count, name := 0, ""
		f.repo.Publisher.Step = func(at string) error {
			if count++; count > step {
				name = at
				return crash
			}
			return nil
		}
		err := f.operator.Publish(t.Context(), p)
		f.repo.Publisher.Step = nil
		if err == nil {
			if step < 4 {
				t.Fatalf("there were only %d steps to crash at", step)
			}
			return
		}
		wantCode(t, err, livepatch.CodeInternal)
		f.online(t) // whatever a machine sees in between is a whole stream
		next := New(f.Options)
		must(t, next.FinishPublications(t.Context()))
		patches, err := f.Store.Patches(t.Context(), "")
		must(t, err)
		if f.online(t) != 1 || len(patches) != 1 {
			t.Errorf("after a crash before %q and a new start, %d livepatches are online and %d in the database, want 1", name, f.online(t), len(patches))
		}
		must(t, f.operator.Publish(t.Context(), p))
	}
}

func TestPublicationThatIsOnlineIsCompleted(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	p := f.change(t, kernel, "one")
	// The crash came after the stream changed and before the database did.
	pending, err := begin(p, caller{kind: operators, name: "ann"})
	must(t, err)
	_, err = f.Store.BeginPublication(t.Context(), pending)
	must(t, err)
	_, err = f.repo.Publisher.Accept(t.Context(), stream.Change(p))
	must(t, err)
	must(t, f.FinishPublications(t.Context()))
	if patches, err := f.operator.Patches(t.Context(), kernel.Release); err != nil || len(patches) != 1 {
		t.Errorf("patches are %+v (%v), want one", patches, err)
	}
	if left, err := f.Store.PendingPublications(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("still pending: %d (%v)", len(left), err)
	}
}

func TestStaleAndForgedPublicationsAreRefused(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	stale := f.change(t, kernel, "mine")
	f.publish(t, kernel, "theirs")
	wantCode(t, f.operator.Publish(t.Context(), stale), livepatch.CodeConflict)
	forged := f.change(t, kernel, "two")
	for name := range forged.Metadata {
		forged.Metadata[name] = bytes.Replace(forged.Metadata[name], []byte(`"version":3`), []byte(`"version":9`), 1)
	}
	if err := f.operator.Publish(t.Context(), forged); err == nil || livepatch.CodeOf(err) == livepatch.CodeInternal {
		t.Errorf("forged metadata: %v, want a refusal", err)
	}
	if left, err := f.Store.PendingPublications(t.Context()); err != nil || len(left) != 0 || f.online(t) != 1 {
		t.Errorf("after refusals %d are pending (%v), %d online", len(left), err, f.online(t))
	}
}

func TestBlobsAreWhatTheyClaim(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	content := []byte("a source")
	_, b, err := stream.CompressModule(content)
	must(t, err)
	b.Size = int64(len(content)) // the digest is of something else
	err = f.operator.PutBlob(t.Context(), api.BlobSource, b, bytes.NewReader(content))
	wantCode(t, err, livepatch.CodeTampered, b.SHA256)
	if resp := f.get(t, "/stream/sources/"+b.SHA256, ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("bytes of another digest are served: %s", resp.Status)
	}
	b.SHA256 = strings.Repeat("x", 64)
	err = f.operator.PutBlob(t.Context(), api.BlobSource, b, bytes.NewReader(content))
	wantCode(t, err, livepatch.CodeInvalid, "SHA-256")
	err = f.operator.PutBlob(t.Context(), "key", livepatch.Blob{SHA256: strings.Repeat("0", 64), Size: 1}, strings.NewReader("x"))
	wantCode(t, err, livepatch.CodeInvalid, "archive or source")
}

// TestDamagedBlobIsReplaced uploads a blob again after its bytes rotted on disk at
// the same size.
func TestDamagedBlobIsReplaced(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	archive, b, err := stream.CompressModule([]byte("module"))
	must(t, err)
	upload := func() { must(t, f.operator.PutBlob(t.Context(), api.BlobArchive, b, bytes.NewReader(archive))) }
	upload()
	rotten := bytes.Clone(archive)
	rotten[len(rotten)/2] ^= 1
	name := stream.StoreName(stream.ArchiveName(b.SHA256))
	must(t, f.Blobs.Put(t.Context(), name, bytes.NewReader(rotten), b.Size))
	upload()
	stored, err := f.Blobs.Get(t.Context(), name)
	must(t, err)
	defer stored.Close()
	if got, err := io.ReadAll(stored); err != nil || !bytes.Equal(got, archive) {
		t.Errorf("after a second upload the damaged bytes are still there (%v)", err)
	}
}

func (f *fixture) get(t testing.TB, path, etag string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, f.http.URL+path, nil)
	must(t, err)
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := f.operator.HTTP.Do(req)
	must(t, err)
	must(t, resp.Body.Close())
	return resp
}

func TestStreamFilesCanBeCached(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	lp := f.publish(t, kernel, "one")
	stamp := f.get(t, "/stream/metadata/timestamp.json", "")
	if stamp.StatusCode != http.StatusOK || stamp.Header.Get("Cache-Control") != "no-cache" {
		t.Errorf("timestamp: %s, Cache-Control %q", stamp.Status, stamp.Header.Get("Cache-Control"))
	}
	if again := f.get(t, "/stream/metadata/timestamp.json", stamp.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("unchanged timestamp: %s, want 304", again.Status)
	}
	archive := f.get(t, "/stream/"+stream.ArchiveName(lp.Archive.SHA256), "")
	if archive.StatusCode != http.StatusOK || !strings.Contains(archive.Header.Get("Cache-Control"), "immutable") || archive.ContentLength != lp.Archive.Size {
		t.Errorf("archive: %s, %v", archive.Status, archive.Header)
	}
	missing := f.get(t, "/stream/metadata/2.root.json", "")
	if missing.StatusCode != http.StatusNotFound || missing.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("a root that may yet come: %s, Cache-Control %q", missing.Status, missing.Header.Get("Cache-Control"))
	}
	f.publish(t, kernel, "two")
	if fresh := f.get(t, "/stream/metadata/timestamp.json", stamp.Header.Get("ETag")); fresh.StatusCode != http.StatusOK {
		t.Errorf("changed timestamp: %s, want 200", fresh.Status)
	}
	for _, path := range []string{"/stream/%2e%2e/publisher/accepted.json", "/stream/..%2fserver.db", "/stream/.init"} {
		if resp := f.get(t, path, ""); resp.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %s, want 404", path, resp.Status)
		}
	}
}
