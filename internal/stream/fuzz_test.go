package stream_test

import (
	"encoding/json"
	"testing"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

// FuzzParseCatalogue holds that what is accepted is valid, is of the kernel asked
// for, and means the same after it was written and read again.
func FuzzParseCatalogue(f *testing.F) {
	repo := streamtest.New(f)
	k := kernel()
	cat := livepatch.Catalogue{
		Kernel:       k.Target(),
		Patches:      []livepatch.Livepatch{repo.Livepatch(k, 1, []byte("a module"))},
		CoveredUntil: "2027-03-19",
	}
	b, err := json.Marshal(cat)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Add([]byte(`{"kernel":{"release":"6.1.0-47-cloud-amd64","arch":"amd64"},"patches":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		cat, err := stream.ParseCatalogue(b, k.Target())
		if err != nil {
			return
		}
		if err := cat.Validate(); err != nil || cat.Kernel != k.Target() {
			t.Fatalf("accepted %q of %s: %v", b, cat.Kernel, err)
		}
		again, err := json.Marshal(cat)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.ParseCatalogue(again, k.Target()); err != nil {
			t.Errorf("what was written is not accepted again: %v", err)
		}
	})
}

// FuzzTrust holds that no first root makes the reader panic, and that one that is
// accepted can be opened again.
func FuzzTrust(f *testing.F) {
	repo := streamtest.New(f)
	root, err := stream.FetchFirstRoot(f.Context(), repo.Fetcher())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(root)
	f.Add([]byte(`{"signed":{"_type":"root","roles":{"root":null},"keys":{"a":null}},"signatures":[]}`))
	f.Add([]byte(`{"signed":{"_type":"root","version":1.5,"roles":{"root":{"keyids":["a"],"threshold":1}},"keys":{"a":{"keytype":"ed25519","keyval":{"public":"00"}}}},"signatures":[{"keyid":"a","sig":"00"}]}`))
	f.Fuzz(func(t *testing.T, root []byte) {
		dir := t.TempDir()
		if _, err := stream.Trust(dir, root, "", "tls"); err != nil {
			return
		}
		if _, err := stream.Open(dir); err != nil {
			t.Errorf("an accepted root is not opened again: %v", err)
		}
	})
}

// FuzzParsePending holds that a pending file of anybody's making does no more harm
// than being refused.
func FuzzParsePending(f *testing.F) {
	repo := streamtest.New(f)
	b, err := json.Marshal(next(repo, kernel(), "a module"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"metadata":{"1.root.json":"e30=","targets.json":"bnVsbA=="}}`))
	v, _ := repo.Catalogue(kernel().Target())
	f.Fuzz(func(_ *testing.T, b []byte) {
		p, err := stream.ParsePending(b)
		if err != nil {
			return
		}
		_, _ = p.Missing()
		_, _ = v.Review(p)
		_, _ = p.Sign(repo.Keys)
	})
}
