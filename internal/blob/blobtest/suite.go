// Package blobtest holds the suite that every blob.Store passes.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"livepatch/internal/blob"
)

// Run runs the suite; open returns an empty store, once per subtest.
func Run(t *testing.T, open func(t *testing.T) blob.Store) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, blob.Store){
		"put then get":          testPutGet,
		"replace":               testReplace,
		"not found":             testNotFound,
		"delete":                testDelete,
		"list":                  testList,
		"wrong size":            testWrongSize,
		"failed read":           testFailedRead,
		"cancelled":             testCancelled,
		"refused names":         testNames,
		"reader keeps its view": testReaderView,
		"concurrent puts":       testConcurrent,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

func put(t *testing.T, s blob.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s blob.Store, name string) string {
	t.Helper()
	r, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func testPutGet(t *testing.T, s blob.Store) {
	for _, content := range []string{"", "x", strings.Repeat("0123456789", 100_000)} {
		put(t, s, "a/b/c.json", content)
		if got := get(t, s, "a/b/c.json"); got != content {
			t.Errorf("got %d bytes, put %d", len(got), len(content))
		}
		if info, err := s.Stat(t.Context(), "a/b/c.json"); err != nil || info.Size != int64(len(content)) || info.Name != "a/b/c.json" {
			t.Errorf("Stat = %+v, %v", info, err)
		}
	}
}

func testReplace(t *testing.T, s blob.Store) {
	put(t, s, "x", "first, the longer one")
	put(t, s, "x", "second")
	if got := get(t, s, "x"); got != "second" {
		t.Errorf("got %q", got)
	}
}

func testNotFound(t *testing.T, s blob.Store) {
	put(t, s, "file", "x")
	for _, name := range []string{"none", "no/such/folder", "file/below"} {
		if _, err := s.Get(t.Context(), name); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Get(%s) = %v, want ErrNotFound", name, err)
		}
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Stat(%s) = %v, want ErrNotFound", name, err)
		}
	}
}

func testDelete(t *testing.T, s blob.Store) {
	put(t, s, "a/x", "x")
	for range 2 { // the second time it is not there, which is no error
		if err := s.Delete(t.Context(), "a/x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Stat(t.Context(), "a/x"); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("after Delete: %v", err)
	}
}

func testList(t *testing.T, s blob.Store) {
	for _, name := range []string{"a/1", "a/b/2", "a-b", "ab/3", "z"} {
		put(t, s, name, name)
	}
	for prefix, want := range map[string]string{
		"":        "a-b a/1 a/b/2 ab/3 z",
		"a/":      "a/1 a/b/2",
		"a":       "a-b a/1 a/b/2 ab/3",
		"a/b":     "a/b/2",
		"none/of": "",
	} {
		infos, err := s.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range infos {
			names = append(names, i.Name)
			if i.Size != int64(len(i.Name)) {
				t.Errorf("%s has size %d", i.Name, i.Size)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("List(%q) = %q, want %q", prefix, got, want)
		}
	}
}

func testWrongSize(t *testing.T, s blob.Store) {
	put(t, s, "x", "before")
	for _, size := range []int64{0, 4, 6} {
		if err := s.Put(t.Context(), "x", strings.NewReader("after"), size); err == nil {
			t.Errorf("Put of 5 bytes announced as %d succeeded", size)
		}
	}
	unchanged(t, s)
}

func testFailedRead(t *testing.T, s blob.Store) {
	put(t, s, "x", "before")
	broken := errors.New("connection reset")
	r := io.MultiReader(strings.NewReader("aft"), failing{broken})
	if err := s.Put(t.Context(), "x", r, 5); !errors.Is(err, broken) {
		t.Errorf("Put = %v, want the reader's error", err)
	}
	unchanged(t, s)
}

func testCancelled(t *testing.T, s blob.Store) {
	put(t, s, "x", "before")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, "x", strings.NewReader("after"), 5); !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v, want context.Canceled", err)
	}
	unchanged(t, s)
}

// unchanged checks that "x" still holds "before" and that nothing else was left.
func unchanged(t *testing.T, s blob.Store) {
	t.Helper()
	if got := get(t, s, "x"); got != "before" {
		t.Errorf("a failed Put left %q", got)
	}
	if infos, err := s.List(t.Context(), ""); err != nil || len(infos) != 1 {
		t.Errorf("a failed Put left %v, %v", infos, err)
	}
}

func testNames(t *testing.T, s blob.Store) {
	for _, name := range []string{"", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".hidden", "a/.put-1", "a\\b", "a b", "a\x00b", "ä", strings.Repeat("n", blob.MaxNameLength+1)} {
		if err := s.Put(t.Context(), name, strings.NewReader("x"), 1); err == nil {
			t.Errorf("Put(%q) was accepted", name)
		}
		if _, err := s.Get(t.Context(), name); err == nil {
			t.Errorf("Get(%q) was accepted", name)
		}
		if err := s.Delete(t.Context(), name); err == nil {
			t.Errorf("Delete(%q) was accepted", name)
		}
	}
}

func testReaderView(t *testing.T, s blob.Store) {
	first := strings.Repeat("1", 1<<20)
	put(t, s, "x", first)
	r, err := s.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	put(t, s, "x", strings.Repeat("2", 1<<20))
	if b, err := io.ReadAll(r); err != nil || string(b) != first {
		t.Errorf("a Put while reading changed what was read (%v)", err)
	}
}

func testConcurrent(t *testing.T, s blob.Store) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			content := bytes.Repeat(fmt.Appendf(nil, "%d", i), 10_000)
			if err := s.Put(t.Context(), "same/name", bytes.NewReader(content), int64(len(content))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := get(t, s, "same/name")
	if want := strings.Repeat(got[:1], 10_000); got != want {
		t.Error("concurrent puts mixed their bytes")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
