package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/blob"
	"livepatch/internal/server"
	"livepatch/internal/store"
	"livepatch/internal/stream"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"livepatch-admin": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the commands as a person types them, against a real server.
func TestScripts(t *testing.T) {
	t.Parallel()
	module, err := os.ReadFile("../../internal/elfobj/testdata/two_objects.ko")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("NO_COLOR", "1")
			env.Values[storeKey{}] = new(blob.Memory)
			env.Setenv("BUILD_ID", strings.Repeat("0a", 20))
			// lp2.ko is the same module under another name, as a next version has.
			for name, b := range map[string][]byte{
				"lp1.ko":   module,
				"lp2.ko":   bytes.ReplaceAll(module, []byte("two_objects"), []byte("two_objectz")),
				"short.ko": module[:len(module)/2],
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), b, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"server": startServer,
			"blob":   archives,
			"enrol":  enrol,
		},
		// Help is long; UPDATE=1 writes it.
		UpdateScripts: os.Getenv("UPDATE") != "",
	})
}

// startServer is the script command "server": a server with an empty stream, its
// online-keys.json, and admin.yaml for its operator.
func startServer(ts *testscript.TestScript, _ bool, _ []string) {
	ctx := context.Background()
	db, err := store.OpenSQLite(ctx, ts.MkAbs("server.db"), time.Now)
	ts.Check(err)
	ts.Check(db.AddOperator(ctx, "test", "ann", "operator-credential"))
	online, err := stream.GenerateOnlineKeys(rand.Reader)
	ts.Check(err)
	blobs := ts.Value(storeKey{}).(*blob.Memory)
	srv := server.New(server.Options{
		Store: db, Blobs: blobs, Stream: &stream.Publisher{Store: blobs, Keys: online, Now: time.Now},
		PublicURL: "https://livepatch.example.com", Version: "1.2.3", Log: slog.New(slog.DiscardHandler),
	})
	h := httptest.NewServer(srv.Handler())
	ts.Defer(func() {
		h.Close()
		ts.Check(db.Close())
	})
	public, err := json.Marshal(online.Public())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("online-keys.json"), public, 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("admin.yaml"), fmt.Appendf(nil, "server: %s\ntoken: operator-credential\n", h.URL), 0o600))
	ts.Setenv("LIVEPATCH_ADMIN_CONFIG", ts.MkAbs("admin.yaml"))
	ts.Setenv("SERVER", h.URL)
}

// storeKey is where a script keeps its server's blobs.
type storeKey struct{}

// archives is the script command "blob": "damage" turns a bit in every archive that
// the server has, "whole" holds them against their names.
func archives(ts *testscript.TestScript, neg bool, args []string) {
	ctx := context.Background()
	blobs := ts.Value(storeKey{}).(*blob.Memory)
	list, err := blobs.List(ctx, stream.StoreName("archives/"))
	ts.Check(err)
	whole := len(list) > 0
	for _, info := range list {
		r, err := blobs.Get(ctx, info.Name)
		ts.Check(err)
		b, err := io.ReadAll(r)
		ts.Check(err)
		whole = whole && strings.Contains(info.Name, digest(b))
		if args[0] == "damage" {
			b[len(b)/2] ^= 1
			ts.Check(blobs.Put(ctx, info.Name, bytes.NewReader(b), info.Size))
		}
	}
	if whole == neg {
		ts.Fatalf("archives are whole: %v", whole)
	}
}

// enrol is the script command "enrol HOST": the token on stdout of the command
// before, a line of its own, enrols a machine, which checks in.
func enrol(ts *testscript.TestScript, _ bool, args []string) {
	secret, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
	k := livepatch.Kernel{Release: "6.1.0-47-cloud-amd64", Arch: "amd64", BuildID: ts.Getenv("BUILD_ID")}
	credential := strings.Repeat("1f", 32)
	c := &api.Client{BaseURL: ts.Getenv("SERVER")}
	_, err := c.Enrol(context.Background(), api.EnrolRequest{
		Token: secret, MachineID: strings.Repeat("0", 31) + "1", Credential: credential,
		Hostname: args[0], Kernel: k, AgentVersion: "1.0",
	})
	ts.Check(err)
	c.Credential = credential
	_, err = c.CheckIn(context.Background(), api.CheckInRequest{
		Kernel: k, BootID: "b", AgentVersion: "1.0", CheckState: livepatch.Checked, PatchState: livepatch.StateNothingToApply,
	})
	ts.Check(err)
}
