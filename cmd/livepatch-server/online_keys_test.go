package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch/internal/api"
	"livepatch/internal/stream"
)

// TestOnlineKeysAreReplacedWithoutAGap: the server signs with the old pair until a
// root names the new one, with the new pair from then on, and a client that knew
// nothing of it follows.
func TestOnlineKeysAreReplacedWithoutAGap(t *testing.T) {
	t.Parallel()
	dir, _ := initialise(t, "--host", "127.0.0.1")
	if code, _, errs := command(t, "online-keys", "--data", dir); code != 0 {
		t.Fatalf("online-keys: exit %d: %s", code, errs)
	}
	if code, _, errs := command(t, "online-keys", "--data", dir); code == 0 || !strings.Contains(errs, "is there already") {
		t.Errorf("the second time: exit %d: %s", code, errs)
	}
	s := serve(t, dir)
	defer s.stop()
	rotateOnline(t, dir, s)
}

// TestLostOnlineKeysAreReplaced: without its keys the server says how to go on, and
// with new ones it starts, so that a root can name them.
func TestLostOnlineKeysAreReplaced(t *testing.T) {
	t.Parallel()
	dir, _ := initialise(t, "--host", "127.0.0.1")
	must(t, os.RemoveAll(filepath.Join(dir, onlineDir)))
	code, _, errs := command(t, "serve", "--data", dir)
	if code == 0 || !strings.Contains(errs, "livepatch-server online-keys --data "+dir) || !strings.Contains(errs, "livepatch-admin keys rotate --online") {
		t.Errorf("serve without keys: exit %d: %s", code, errs)
	}
	if code, _, errs := command(t, "online-keys", "--data", dir); code != 0 {
		t.Fatalf("online-keys: exit %d: %s", code, errs)
	}
	s := serve(t, dir)
	defer s.stop()
	rotateOnline(t, dir, s)
}

// rotateOnline publishes a root that names the next pair, as an operator does, and
// reads the stream by it.
func rotateOnline(t *testing.T, dir string, s running) {
	t.Helper()
	c := client(t, dir, s.url)
	fetcher := &stream.HTTPFetcher{Client: c.HTTP, Base: s.url}
	root, err := os.ReadFile(filepath.Join(dir, "operator", "keys", "1.root.json"))
	must(t, err)
	reader, err := stream.Trust(t.TempDir(), root, "", "test")
	must(t, err)
	view, err := reader.View(t.Context(), fetcher)
	must(t, err)
	set, err := view.Keys()
	must(t, err)
	b, err := os.ReadFile(filepath.Join(dir, nextOnlineFile))
	must(t, err)
	before := set.Online
	set.Online, err = stream.ParseOnlinePublic(b)
	must(t, err)
	if set.Online == before {
		t.Fatal("the new pair is the old one")
	}
	pending, err := view.Rotate(set, "test", stream.Lifetimes{}, time.Now())
	must(t, err)
	keys, err := stream.LoadKeys(filepath.Join(dir, "operator", "keys"))
	must(t, err)
	_, err = pending.Sign(keys)
	must(t, err)
	must(t, c.Publish(t.Context(), api.Publication(pending.Change)))
	if view, err = reader.View(t.Context(), fetcher); err != nil {
		t.Fatalf("after the rotation: %v", err)
	}
	if after, err := view.Keys(); err != nil || after.Online != set.Online {
		t.Errorf("the stream trusts %v (%v), want the new pair", after.Online, err)
	}
}
