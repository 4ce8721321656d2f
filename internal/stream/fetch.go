package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"livepatch"
)

// Fetcher opens files of the stream by their name in it, such as
// "metadata/timestamp.json". HTTPFetcher asks a server, StoreFetcher a store.
type Fetcher interface {
	// Fetch opens name. With an etag that still names the content, the answer is
	// NotModified without a body. A name that holds nothing is CodeNotFound.
	Fetch(ctx context.Context, name, etag string) (Fetched, error)
}

// Fetched is an answer of a Fetcher.
type Fetched struct {
	// Body is the content, to be closed by the caller; nil when NotModified.
	Body        io.ReadCloser
	NotModified bool
	// ETag names the content; may be empty.
	ETag string
	// Date is the other side's clock, zero when it did not say.
	Date time.Time
}

// HTTPFetcher fetches over HTTP.
type HTTPFetcher struct {
	Client *http.Client
	// Base is the server's URL without path, "https://livepatch.example.com".
	Base string
}

// Fetch implements Fetcher. Failures of the transport are returned for the caller
// to explain (%w); an answer that is neither the file nor "not found" is
// CodeUnavailable.
func (f HTTPFetcher) Fetch(ctx context.Context, name, etag string) (Fetched, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(f.Base, "/")+"/stream/"+name, nil)
	if err != nil {
		return Fetched{}, fmt.Errorf("fetch %s: %w", name, err)
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := f.Client.Do(req)
	if err != nil {
		return Fetched{}, fmt.Errorf("fetch %s: %w", name, err)
	}
	out := Fetched{Body: resp.Body, ETag: resp.Header.Get("ETag")}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		out.Date = date
	}
	if resp.StatusCode == http.StatusOK {
		return out, nil
	}
	// A small body is read to its end so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
	out.Body = nil
	switch resp.StatusCode {
	case http.StatusNotModified:
		out.NotModified = true
		return out, nil
	case http.StatusNotFound:
		return out, livepatch.Errorf(livepatch.CodeNotFound, "the server has no %s", name)
	}
	return out, livepatch.Errorf(livepatch.CodeUnavailable, "the server answered %s when asked for %s; try again later", resp.Status, name)
}

// StoreFetcher fetches from the store that a Publisher writes to.
type StoreFetcher struct{ Store Store }

// Fetch implements Fetcher.
func (f StoreFetcher) Fetch(ctx context.Context, name, _ string) (Fetched, error) {
	r, err := f.Store.Get(ctx, StoreName(name))
	if errors.Is(err, fs.ErrNotExist) {
		return Fetched{}, livepatch.Errorf(livepatch.CodeNotFound, "the store has no %s", name)
	}
	return Fetched{Body: r}, err
}

// FetchFirstRoot fetches 1.root.json, for the first trust of a machine that has
// none. The bytes are not verified by anything: compare Fingerprint, or trust the
// transport they came over.
func FetchFirstRoot(ctx context.Context, f Fetcher) ([]byte, error) {
	b, _, err := fetchAll(ctx, f, metadataName("root", 1), maxRootSize, "")
	if livepatch.CodeOf(err) == livepatch.CodeNotFound {
		return nil, livepatch.Errorf(livepatch.CodeUnavailable, "the server's stream is empty: its operator has not pushed keys yet")
	}
	return b, err
}

// fetchAll reads a whole file of at most limit bytes. With an etag that still
// holds, it returns nil bytes and NotModified.
func fetchAll(ctx context.Context, f Fetcher, name string, limit int64, etag string) ([]byte, Fetched, error) {
	got, err := f.Fetch(ctx, name, etag)
	if err != nil || got.NotModified {
		return nil, got, err
	}
	defer got.Body.Close()
	b, err := io.ReadAll(io.LimitReader(got.Body, limit+1))
	if err != nil {
		return nil, got, fmt.Errorf("fetch %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, got, livepatch.Errorf(livepatch.CodeTampered, "%s is larger than the %d bytes it may have; it is refused", name, limit)
	}
	return b, got, nil
}
