package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"livepatch"
	"livepatch/internal/localapi"
)

func TestMain(m *testing.M) {
	program := func() { os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr)) }
	testscript.Main(m, map[string]func(){"livepatch": program, canonicalName: program})
}

// TestScripts runs the commands as a person types them, against a daemon that
// answers what the script's file daemon.json says.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("LIVEPATCH_SOCKET", filepath.Join(env.WorkDir, "s"))
			env.Setenv("NO_COLOR", "1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"daemon": startDaemon},
		// Help and status are long; -update writes them.
		UpdateScripts: os.Getenv("UPDATE") != "",
	})
}

// fakeDaemon answers the routes that its file has, and any other with not-enabled.
// It writes what it was sent to the file requests.
type fakeDaemon struct {
	Answers map[string]json.RawMessage  `json:"answers"`
	Errors  map[string]localapi.Failure `json:"errors"`
	Hang    bool                        `json:"hang"`
	log     io.Writer
}

// startDaemon is the script command "daemon FILE".
func startDaemon(ts *testscript.TestScript, _ bool, args []string) {
	var d fakeDaemon
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &d))
	requests, err := os.Create(ts.MkAbs("requests"))
	ts.Check(err)
	d.log = requests
	l, err := net.Listen("unix", ts.Getenv("LIVEPATCH_SOCKET"))
	ts.Check(err)
	srv := &http.Server{Handler: &d, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); err != http.ErrServerClosed {
			panic(err)
		}
	}()
	ts.Defer(func() {
		_ = srv.Close()
		<-done
		_ = requests.Close()
	})
}

func (d *fakeDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route := r.Method + " " + r.URL.Path
	body, err := io.ReadAll(r.Body)
	if err == nil {
		_, err = io.WriteString(d.log, strings.TrimSpace(route+" "+string(body))+"\n")
	}
	if err != nil {
		panic(err)
	}
	if d.Hang {
		<-r.Context().Done()
		return
	}
	if answer, ok := d.Answers[route]; ok {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
		return
	}
	f, ok := d.Errors[route]
	if !ok {
		f = localapi.Failure{Status: http.StatusConflict, Code: livepatch.CodeNotEnabled, Detail: "this machine is not enabled"}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(f)
}
