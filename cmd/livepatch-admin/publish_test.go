package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"livepatch"
	"livepatch/internal/stream"
)

func wantCode(t *testing.T, err error, code livepatch.Code) {
	t.Helper()
	if livepatch.CodeOf(err) != code {
		t.Errorf("%v has code %q, want %q", err, livepatch.CodeOf(err), code)
	}
}

// TestPackFolder packs the same folder twice, with other times and owners.
func TestPackFolder(t *testing.T) {
	t.Parallel()
	folder := func(at time.Time) fstest.MapFS {
		return fstest.MapFS{
			"lp.c":        {Data: []byte("int x;\n"), ModTime: at, Mode: 0o600},
			"sub/run.sh":  {Data: []byte("#!/bin/sh\n"), ModTime: at, Mode: 0o700},
			".git/config": {Data: []byte(at.String()), ModTime: at},
		}
	}
	a, err := packFolder(folder(time.Unix(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := packFolder(folder(time.Unix(1e9, 0)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the same sources gave two archives")
	}
	other := folder(time.Unix(1, 0))
	other["lp.c"].Data = []byte("int y;\n")
	c, err := packFolder(other)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, c) {
		t.Error("other sources gave the same archive")
	}
}

// TestBuildIDs takes build ids from flags, and where there are none from the kernel
// that is installed here.
func TestBuildIDs(t *testing.T) {
	t.Parallel()
	k := livepatch.KernelTarget{Release: "6.1.0-47-cloud-amd64", Arch: "amd64"}
	p := &program{boot: t.TempDir()}
	ids, err := p.buildIDs(k, publishFlags{buildIDs: []string{strings.Repeat("0B", 20), strings.Repeat("0a", 20), strings.Repeat("0b", 20)}})
	if want := strings.Repeat("0a", 20) + " " + strings.Repeat("0b", 20); err != nil || strings.Join(ids, " ") != want {
		t.Errorf("build ids %q, %v; want %q", ids, err, want)
	}
	_, err = p.buildIDs(k, publishFlags{})
	wantCode(t, err, livepatch.CodeInvalid)
	if err == nil || !strings.Contains(err.Error(), "give --kernel-image VMLINUZ or --build-id HEX") {
		t.Errorf("%v does not say what to do", err)
	}
	if err := os.WriteFile(filepath.Join(p.boot, "vmlinuz-"+k.Release), []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = p.buildIDs(k, publishFlags{})
	wantCode(t, err, livepatch.CodeInvalid)
}

// TestPlace decides versions and what a new one must fix.
func TestPlace(t *testing.T) {
	t.Parallel()
	fix := func(names ...string) (fixes []livepatch.Fix) {
		for _, n := range names {
			fixes = append(fixes, livepatch.Fix{CVE: n, Priority: livepatch.PriorityHigh})
		}
		return fixes
	}
	before := livepatch.Catalogue{Patches: []livepatch.Livepatch{
		{Version: livepatch.Version{Major: 3, Minor: 2}, BuildIDs: []string{"aa"}, Fixes: fix("CVE-2026-0001")},
		{Version: livepatch.Version{Major: 4, Minor: 1}, BuildIDs: []string{"aa"}, Fixes: fix("CVE-2026-0002"), Withdrawn: &livepatch.Withdrawal{}},
	}}
	for name, c := range map[string]struct {
		lp        livepatch.Livepatch
		flags     publishFlags
		version   string
		fixes     int
		wantError livepatch.Code
	}{
		"replaces, all listed":        {lp: livepatch.Livepatch{BuildIDs: []string{"aa"}, Module: livepatch.Module{Replace: true}, Fixes: fix("CVE-2026-0001", "CVE-2026-0003")}, version: "5.1", fixes: 2},
		"replaces, one left out":      {lp: livepatch.Livepatch{BuildIDs: []string{"aa"}, Module: livepatch.Module{Replace: true}, Fixes: fix("CVE-2026-0003")}, wantError: livepatch.CodeInvalid},
		"replaces, left out on order": {lp: livepatch.Livepatch{BuildIDs: []string{"aa"}, Module: livepatch.Module{Replace: true}, Fixes: fix("CVE-2026-0003")}, flags: publishFlags{fewer: true}, version: "5.1", fixes: 1},
		"stacks":                      {lp: livepatch.Livepatch{BuildIDs: []string{"aa"}, Fixes: fix("CVE-2026-0003")}, version: "5.1", fixes: 2},
		"another binary":              {lp: livepatch.Livepatch{BuildIDs: []string{"bb"}, Module: livepatch.Module{Replace: true}, Fixes: fix("CVE-2026-0003")}, version: "5.1", fixes: 1},
		"a rebuild":                   {lp: livepatch.Livepatch{BuildIDs: []string{"bb"}, Fixes: fix("CVE-2026-0003")}, flags: publishFlags{version: "4.2"}, version: "4.2", fixes: 1},
		"nonsense":                    {flags: publishFlags{version: "4"}, wantError: livepatch.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := publishing{lp: c.lp, flags: c.flags}
			err := w.place(before)
			wantCode(t, err, c.wantError)
			if err == nil && (w.lp.Version.String() != c.version || len(w.lp.Fixes) != c.fixes) {
				t.Errorf("version %s with %d fixes, want %s with %d", w.lp.Version, len(w.lp.Fixes), c.version, c.fixes)
			}
		})
	}
}

// TestChangeKeys applies the flags of keys rotate to a set.
func TestChangeKeys(t *testing.T) {
	t.Parallel()
	p := &program{random: bytes.NewReader(bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuv-"), 100))}
	keys, err := p.newKeys(4)
	if err != nil {
		t.Fatal(err)
	}
	all := public(keys)
	set := func() *stream.KeySet {
		return &stream.KeySet{Root: []stream.PublicKey{all[0], all[1]}, RootThreshold: 1, Signing: []stream.PublicKey{all[2], all[3]}, SigningThreshold: 1}
	}
	s := set()
	fresh, err := p.changeKeys(s, rotateFlags{replace: []string{all[0].ID()[:12]}, remove: []string{all[3].ID()}, addSigning: 2, signingThreshold: 3})
	if err != nil {
		t.Fatal(err)
	}
	if len(fresh) != 3 || fresh[0].role != "root" || s.Root[0] != fresh[0].Public() || s.Root[1] != all[1] {
		t.Errorf("root keys %v, fresh %v", s.Root, fresh)
	}
	if len(s.Signing) != 3 || s.Signing[0] != all[2] || s.SigningThreshold != 3 {
		t.Errorf("signing keys %v, threshold %d", s.Signing, s.SigningThreshold)
	}
	_, err = p.changeKeys(set(), rotateFlags{replace: []string{""}})
	wantCode(t, err, livepatch.CodeNotFound)
}

// TestInterrupted ends a command that is interrupted with the code of that.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	conf := filepath.Join(t.TempDir(), "admin.yaml")
	if err := os.WriteFile(conf, []byte("server: http://127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"--config", conf, "account", "list"}, strings.NewReader(""), &out, &errs); code == 0 || out.Len() > 0 {
		t.Errorf("exit code %d with output %q", code, out.String())
	}
}
