// Package streamtest makes real signed streams for tests: keys, a store in memory, a
// Publisher, and what it takes to publish to it.
package streamtest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/blob"
	"livepatch/internal/stream"
)

// Repo is a stream with one root and one signing key.
type Repo struct {
	Store     *blob.Memory
	Publisher *stream.Publisher
	// Keys are the offline keys, root first.
	Keys []stream.Key
	Set  stream.KeySet
	// Time is what the publisher's clock says; set it to move on.
	Time time.Time

	t      testing.TB
	reader *stream.Reader
}

// New makes a stream and pushes its first keys.
func New(t testing.TB) *Repo {
	t.Helper()
	return NewWith(t, 1, 1, 1, 1)
}

// NewWith is New with so many root and signing keys and such thresholds.
func NewWith(t testing.TB, roots, rootThreshold, signing, signingThreshold int) *Repo {
	t.Helper()
	store := new(blob.Memory)
	online, err := stream.GenerateOnlineKeys(rand.Reader)
	must(t, err)
	r := &Repo{Store: store, Time: time.Now().UTC().Truncate(time.Second), t: t}
	r.Publisher = &stream.Publisher{Store: store, Keys: online, Now: func() time.Time { return r.Time }}
	r.Set = stream.KeySet{RootThreshold: rootThreshold, SigningThreshold: signingThreshold, Online: online.Public()}
	r.Set.Root, r.Keys = newKeys(t, roots, r.Keys)
	r.Set.Signing, r.Keys = newKeys(t, signing, r.Keys)
	p, err := stream.Create(r.Set, r.Keys, stream.Lifetimes{}, r.Time)
	must(t, err)
	r.Accept(p)
	root, err := stream.FetchFirstRoot(t.Context(), r.Fetcher())
	must(t, err)
	r.reader, err = stream.Trust(t.TempDir(), root, "", "package")
	must(t, err)
	return r
}

func newKeys(t testing.TB, n int, all []stream.Key) ([]stream.PublicKey, []stream.Key) {
	t.Helper()
	var public []stream.PublicKey
	for range n {
		k, err := stream.GenerateKey(rand.Reader)
		must(t, err)
		public, all = append(public, k.Public()), append(all, k)
	}
	return public, all
}

// Fetcher reads the stream from its store.
func (r *Repo) Fetcher() stream.Fetcher { return stream.StoreFetcher{Store: r.Store} }

// Reader returns a new client that trusts the first root.
func (r *Repo) Reader() *stream.Reader {
	r.t.Helper()
	root, err := stream.FetchFirstRoot(r.t.Context(), r.Fetcher())
	must(r.t, err)
	reader, err := stream.Trust(r.t.TempDir(), root, "", "package")
	must(r.t, err)
	return reader
}

// Accept publishes a complete change.
func (r *Repo) Accept(p *stream.Pending) stream.Result {
	r.t.Helper()
	missing, err := p.Missing()
	must(r.t, err)
	if len(missing) > 0 {
		r.t.Fatalf("signatures are missing: %+v", missing)
	}
	res, err := r.Publisher.Accept(r.t.Context(), p.Change)
	must(r.t, err)
	return res
}

// Catalogue returns the operator's view of a kernel.
func (r *Repo) Catalogue(k livepatch.KernelTarget) (*stream.View, livepatch.Catalogue) {
	r.t.Helper()
	v, err := r.reader.View(r.t.Context(), r.Fetcher(), k)
	must(r.t, err)
	return v, v.Catalogue(k)
}

// Change signs a catalogue as the next of its kernel, without publishing it.
func (r *Repo) Change(cat livepatch.Catalogue) *stream.Pending {
	r.t.Helper()
	v, _ := r.Catalogue(cat.Kernel)
	p, err := v.SetCatalogue(cat, "test", stream.Lifetimes{}, r.Time)
	must(r.t, err)
	_, err = p.Sign(r.Keys)
	must(r.t, err)
	return p
}

// Publish uploads and publishes module as the next version for kernel k and returns
// its entry.
func (r *Repo) Publish(k livepatch.Kernel, module []byte, fixes ...livepatch.Fix) livepatch.Livepatch {
	r.t.Helper()
	_, cat := r.Catalogue(k.Target())
	lp := r.Livepatch(k, uint32(len(cat.Patches)+1), module, fixes...)
	cat.Patches = append(cat.Patches, lp)
	r.Accept(r.Change(cat))
	return lp
}

// Livepatch uploads module and returns the entry of version MAJOR.1.
func (r *Repo) Livepatch(k livepatch.Kernel, major uint32, module []byte, fixes ...livepatch.Fix) livepatch.Livepatch {
	r.t.Helper()
	archive, b, err := stream.CompressModule(module)
	must(r.t, err)
	must(r.t, r.Store.Put(r.t.Context(), stream.StoreName(stream.ArchiveName(b.SHA256)), bytes.NewReader(archive), b.Size))
	sum := sha256.Sum256(module)
	if fixes == nil {
		fixes = []livepatch.Fix{{CVE: "CVE-2026-1234", Priority: livepatch.PriorityHigh}}
	}
	v := livepatch.Version{Major: major, Minor: 1}
	return livepatch.Livepatch{
		Version:  v,
		BuildIDs: []string{k.BuildID},
		Module: livepatch.Module{
			Name:     "lp_" + strings.ReplaceAll(v.String(), ".", "_"),
			VerMagic: k.Release + " SMP preempt mod_unload modversions ",
			Replace:  true,
			Objects:  []livepatch.Object{{Name: "vmlinux", Functions: []string{"cmdline_proc_show"}}},
			Size:     int64(len(module)),
			SHA256:   hex.EncodeToString(sum[:]),
		},
		Archive:   b,
		Fixes:     fixes,
		Published: r.Time,
	}
}

// Withdraw withdraws a version of kernel k.
func (r *Repo) Withdraw(k livepatch.KernelTarget, v livepatch.Version, reason string) {
	r.t.Helper()
	_, cat := r.Catalogue(k)
	lp := cat.Find(v)
	if lp == nil {
		r.t.Fatalf("no livepatch %s of %s", v, k)
	}
	lp.Withdrawn = &livepatch.Withdrawal{At: r.Time, Reason: reason}
	r.Accept(r.Change(cat))
}

// Serve serves the stream at /stream/ as a server does.
func (r *Repo) Serve() *httptest.Server {
	r.t.Helper()
	srv := httptest.NewServer(r.Handler())
	r.t.Cleanup(srv.Close)
	return srv
}

// Handler answers GET /stream/... from the store, with ETags.
func (r *Repo) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		name := strings.TrimPrefix(req.URL.Path, "/")
		body, err := r.Store.Get(req.Context(), name)
		if err != nil {
			http.NotFound(w, req)
			return
		}
		defer body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		sum := sha256.Sum256(b.Bytes())
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:8])+`"`)
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b.Bytes()))
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
