package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// fixture is a real livepatch module for the fake kernel; named is its name, which
// others of the same length may take the place of.
const (
	fixture = "internal/elfobj/testdata/two_objects.ko"
	named   = "two_objects"
	loaded  = "lp_bench_00"
)

// stage is a real server with one published livepatch, and a real daemon, enabled
// through a counting proxy, on a fake kernel that has that livepatch in force.
type stage struct {
	dir, ca, url string
	daemon       *exec.Cmd
	socket       string
	proxy        *proxy
	// stops end what runs, in reverse order.
	stops []func() error
}

func newStage(ctx context.Context) (s *stage, err error) {
	dir, err := os.MkdirTemp("", "livepatch-bench-")
	if err != nil {
		return nil, err
	}
	s = &stage{dir: dir}
	s.stops = append(s.stops, func() error { return os.RemoveAll(dir) })
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	// The daemon runs as somebody else and has to reach its files.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{s.build, s.startServer, s.publishFirst, s.startDaemon} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// close ends everything that was started; twice is no error.
func (s *stage) close() error {
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	s.stops = nil
	return errors.Join(errs...)
}

// path is a file in the stage's folder.
func (s *stage) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *stage) bin(name string) string { return s.path("bin", name) }

// build makes programs and yardsticks as `make build` does.
func (s *stage) build(ctx context.Context) error {
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", s.path("bin")+"/",
		"./cmd/...", "./test/bench/yardstick/...")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := output(c)
	return err
}

// output runs a command; its error carries what the command said.
func output(c *exec.Cmd) ([]byte, error) {
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, said.Bytes())
	}
	return out.Bytes(), nil
}

// start runs a command until the stage closes, or stop is called.
func (s *stage) start(c *exec.Cmd, log string) (stop func() error, err error) {
	f, err := os.Create(s.path(log))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c.Stdout, c.Stderr = f, f
	if err := c.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait() // how it ends does not matter here
		close(ended)
	}()
	stop = func() error {
		_ = c.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
			return nil
		case <-time.After(10 * time.Second):
			err := c.Process.Kill()
			<-ended
			return err
		}
	}
	s.stops = append(s.stops, stop)
	return stop, nil
}

func (s *stage) startServer(ctx context.Context) error {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		return err
	}
	data := s.path("server")
	if _, err := output(exec.CommandContext(ctx, s.bin("livepatch-server"), "init", "--data", data, "--host", "localhost", "--listen", addr)); err != nil {
		return err
	}
	if _, err := s.start(exec.Command(s.bin("livepatch-server"), "serve", "--data", data), "server.log"); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(data, "ca.crt"))
	if err != nil {
		return err
	}
	s.ca, s.url = s.path("ca.crt"), "https://localhost:"+port
	if err := os.WriteFile(s.ca, ca, 0o644); err != nil {
		return err
	}
	if s.proxy, err = newProxy(addr); err != nil {
		return err
	}
	s.stops = append(s.stops, func() error { s.proxy.close(); return nil })
	return s.until(ctx, "the server answers", func() error {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

// until waits for something to work.
func (s *stage) until(ctx context.Context, what string, try func() error) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || sleep(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("waited in vain until %s: %w", what, err)
		}
	}
}

// admin runs livepatch-admin and decodes its answer.
func (s *stage) admin(ctx context.Context, answer any, args ...string) error {
	args = append([]string{"--config", s.path("server", "operator", "admin.yaml"), "--json"}, args...)
	out, err := output(exec.CommandContext(ctx, s.bin("livepatch-admin"), args...))
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(out, answer)
}

// token makes a token for one machine.
func (s *stage) token(ctx context.Context) (string, error) {
	var t struct {
		Secret string `json:"secret"`
	}
	err := s.admin(ctx, &t, "token", "create", "bench")
	return t.Secret, err
}

// publish signs and publishes a module under a name of as many letters as the
// fixture's, filled up with pad, and returns its file.
func (s *stage) publish(ctx context.Context, name string, pad []byte) (string, error) {
	ko, err := os.ReadFile(fixture)
	if err != nil {
		return "", err
	}
	ko = append(bytes.ReplaceAll(ko, []byte(named), []byte(name)), pad...)
	path := s.path(name + ".ko")
	if err := os.WriteFile(path, ko, 0o644); err != nil {
		return "", err
	}
	return path, s.admin(ctx, nil, "publish", path, "--fixes", "CVE-2026-1234:high", "--build-id", kerneltest.Running().BuildID)
}

func (s *stage) publishFirst(ctx context.Context) error {
	if err := s.admin(ctx, nil, "account", "create", "bench"); err != nil {
		return err
	}
	_, err := s.publish(ctx, loaded, nil)
	return err
}

// startDaemon enables the real livepatchd on a fake kernel. It runs as nobody: it
// has no right to load modules into the kernel that really runs.
func (s *stage) startDaemon(ctx context.Context) error {
	const nobody = 65534
	k := kerneltest.New(bench{dir: s.path("kernel")})
	ko, err := os.Open(s.path(loaded + ".ko"))
	if err != nil {
		return err
	}
	defer ko.Close()
	if err := k.Load(ko, ""); err != nil {
		return err
	}
	home := s.path("daemon")
	if err := errors.Join(os.Mkdir(home, 0o755), os.Chown(home, nobody, nobody),
		os.WriteFile(s.path("livepatch.yaml"), []byte("ca-certs: "+s.ca+"\n"), 0o644)); err != nil {
		return err
	}
	s.socket = filepath.Join(home, "livepatchd.sock")
	s.daemon = exec.Command(s.bin("livepatchd"), "--config", s.path("livepatch.yaml"), "--state", filepath.Join(home, "state"),
		"--socket", s.socket, "--trust-root", s.path("none"), "--root", k.Root)
	s.daemon.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if _, err := s.start(s.daemon, "daemon.log"); err != nil {
		return err
	}
	token, err := s.token(ctx)
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(s.proxy.Addr().String())
	if err != nil {
		return err
	}
	client := localapi.NewClient(s.socket)
	return s.until(ctx, "the daemon is enabled", func() error {
		_, err := client.Enable(ctx, localapi.EnableRequest{Token: token, Server: "https://localhost:" + port})
		return err
	})
}

// refresh makes the daemon check with the server, and makes sure that the check
// found the livepatch in force and nothing to do.
func (s *stage) refresh(ctx context.Context) error {
	r, err := localapi.NewClient(s.socket).Refresh(ctx, localapi.RefreshRequest{})
	if err != nil {
		return err
	}
	if len(r.Status.Problems) > 0 || r.Status.Status[0].Livepatch.State != "applied" {
		return fmt.Errorf("the daemon is not in order: %s", r.Message)
	}
	return nil
}

// bench is what the fake kernel needs of a test.
type bench struct {
	testing.TB
	dir string
}

func (bench) Helper()        {}
func (bench) Cleanup(func()) {}
func (b bench) TempDir() string {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		panic(err) // the folder around it is ours
	}
	return b.dir
}
func (bench) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
