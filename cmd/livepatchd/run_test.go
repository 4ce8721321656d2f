package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// startDaemon runs livepatchd on a fake kernel root until the test ends. It returns the
// socket and a channel with the exit code.
func startDaemon(t *testing.T, args ...string) (socket string, stop func() int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "lp") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	args = append([]string{"--root", kerneltest.New(t).Root, "--state", filepath.Join(dir, "state"), "--config", filepath.Join(dir, "none.yaml"), "--socket", socket}, args...)
	var stderr bytes.Buffer
	go func() { code <- run(ctx, args, nil, &bytes.Buffer{}, &stderr) }()
	stop = func() int {
		cancel()
		c := <-code
		code <- c
		if t.Failed() {
			t.Log(stderr.String())
		}
		return c
	}
	t.Cleanup(func() { stop(); os.RemoveAll(dir) })
	return socket, stop
}

// answers waits until the daemon answers.
func answers(t *testing.T, c *localapi.Client) {
	t.Helper()
	for t.Context().Err() == nil {
		if _, err := c.Doctor(t.Context()); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond) // the socket appears when it appears
	}
}

func TestDaemonServesAndStops(t *testing.T) {
	t.Parallel()
	socket, stop := startDaemon(t)
	c := localapi.NewClient(socket)
	answers(t, c)
	if _, err := c.Status(t.Context()); livepatch.CodeOf(err) != livepatch.CodeNotEnabled {
		t.Errorf("status: %v", err)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("socket has mode %v, %v", info.Mode(), err)
	}
	// A second one on the same socket gives way.
	var stderr bytes.Buffer
	state := filepath.Join(t.TempDir(), "state")
	if code := run(t.Context(), []string{"--socket", socket, "--state", state, "--config", "/no/such"}, nil, nil, &stderr); code != exitFailure || !strings.Contains(stderr.String(), "another livepatchd") {
		t.Errorf("a second daemon: %d %s", code, stderr.String())
	}
	if code := stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "livepatch.yaml")
	if err := os.WriteFile(config, []byte("no-such-key: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		text string
	}{
		"help":         {[]string{"--help"}, exitOK, "-state"},
		"unknown flag": {[]string{"--nonsense"}, exitUsage, "nonsense"},
		"argument":     {[]string{"start"}, exitUsage, "takes no arguments"},
		"unknown key":  {[]string{"--config", config, "--state", t.TempDir()}, exitFailure, `"no-such-key"`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), tc.args, nil, &stdout, &stderr)
		if code != tc.code || !strings.Contains(stderr.String(), tc.text) {
			t.Errorf("%s: exit code %d, %s", name, code, stderr.String())
		}
	}
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"--version"}, nil, &stdout, nil); code != exitOK || stdout.String() == "\n" {
		t.Errorf("version: %d %q", code, stdout.String())
	}
}
