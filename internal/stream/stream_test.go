package stream_test

import (
	"bytes"
	"testing"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

func kernel() livepatch.Kernel {
	return livepatch.Kernel{Release: "6.1.0-47-cloud-amd64", Arch: "amd64", BuildID: "0123456789abcdef0123456789abcdef01234567"}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPublishAndFollow is the whole way: what is published, and withdrawn, arrives
// at a machine.
func TestPublishAndFollow(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	reader := repo.Reader()
	k := kernel()

	if _, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time); livepatch.CodeOf(err) != livepatch.CodeUnsupported {
		t.Fatalf("before anything is published: %v, want unsupported", err)
	}
	module := bytes.Repeat([]byte("module"), 1000)
	want := repo.Publish(k, module)

	cat, err := reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	lp := cat.Latest(k)
	if lp == nil || lp.Module.SHA256 != want.Module.SHA256 {
		t.Fatalf("Latest = %+v, want the published livepatch", lp)
	}
	var got bytes.Buffer
	must(t, stream.FetchModule(t.Context(), repo.Fetcher(), *lp, &got))
	if !bytes.Equal(got.Bytes(), module) {
		t.Error("the fetched module differs from the published one")
	}
	must(t, stream.VerifyModule(bytes.NewReader(got.Bytes()), lp.Module))

	repo.Withdraw(k.Target(), want.Version, "it warns")
	cat, err = reader.Refresh(t.Context(), repo.Fetcher(), k.Target(), repo.Time)
	must(t, err)
	if lp := cat.Find(want.Version); lp == nil || lp.Withdrawn == nil || lp.Withdrawn.Reason != "it warns" {
		t.Errorf("after the withdrawal: %+v", lp)
	}
	kept, err := reader.Cached(k.Target())
	must(t, err)
	if kept.Latest(k) != nil {
		t.Error("the withdrawn livepatch is still offered offline")
	}
}
