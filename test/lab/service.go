package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"livepatch"
	"livepatch/internal/api"
)

// ServiceHost is the name by which machines know the server; their /etc/hosts has
// it as the host's loopback interface.
const ServiceHost = "livepatch.test"

// Service is a livepatch-server on the loopback interface, made by its own init.
type Service struct {
	// Dir is its data folder.
	Dir string
	// URL is how machines reach it.
	URL string

	server, admin, config, listen string

	cmd  *exec.Cmd
	log  *syncBuffer
	done chan struct{}
}

// syncBuffer is a buffer that a running program writes to.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// NewService builds the server and its admin tool, makes a server in dir with init,
// and starts it. The caller stops it.
func (l *Lab) NewService(ctx context.Context, dir string) (*Service, error) {
	server, err := l.GoBuild(ctx, "./cmd/livepatch-server")
	if err != nil {
		return nil, err
	}
	admin, err := l.GoBuild(ctx, "./cmd/livepatch-admin")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Service{
		Dir: dir, URL: "https://" + net.JoinHostPort(ServiceHost, port),
		server: server, admin: admin,
		config: filepath.Join(dir, "operator", "here.yaml"),
		listen: net.JoinHostPort("127.0.0.1", port),
		log:    &syncBuffer{},
	}
	_, err = run(ctx, "", nil, server, "init", "--data", dir, "--host", ServiceHost, "--host", "127.0.0.1", "--listen", s.listen)
	if err != nil {
		return nil, err
	}
	// On this host nobody knows ServiceHost; the certificate is for both names.
	config, err := os.ReadFile(filepath.Join(dir, "operator", "admin.yaml"))
	if err != nil {
		return nil, fmt.Errorf("read operator's configuration: %w", err)
	}
	config = bytes.ReplaceAll(config, []byte(s.URL), []byte("https://"+s.listen))
	if err := os.WriteFile(s.config, config, 0o600); err != nil {
		return nil, fmt.Errorf("write operator's configuration: %w", err)
	}
	return s, s.Start(ctx)
}

// freePort is a port that was free a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close() //nolint:errcheck // was only asked for its number
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// Start starts the server and waits, as long as ctx, until it is ready. It runs on
// until it is stopped.
func (s *Service) Start(ctx context.Context) error {
	s.cmd = exec.CommandContext(context.WithoutCancel(ctx), s.server, "serve", "--data", s.Dir, "--listen", s.listen)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start server: %w", err)
	}
	done := make(chan struct{})
	s.done = done
	go func() {
		s.cmd.Wait() //nolint:errcheck // its log tells
		close(done)
	}()
	client, err := s.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.listen+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("ask server: %w", err)
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close() //nolint:errcheck // only its status counts
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-done:
			return fmt.Errorf("the server ended:\n%s", s.Log())
		case <-ctx.Done():
			return fmt.Errorf("the server is not ready: %w\n%s", ctx.Err(), s.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// client trusts the server's own authority.
func (s *Service) client() (*http.Client, error) {
	pem, err := os.ReadFile(filepath.Join(s.Dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the server's authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the server's authority is no certificate")
	}
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
	}, nil
}

// Stop ends the server and waits for that.
func (s *Service) Stop() {
	s.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // has ended already then
	select {
	case <-s.done:
	case <-time.After(15 * time.Second):
		s.cmd.Process.Kill() //nolint:errcheck // has ended already then
		<-s.done
	}
}

// Log is what the server has printed.
func (s *Service) Log() string { return s.log.String() }

// Admin runs livepatch-admin and returns what it prints for people.
func (s *Service) Admin(ctx context.Context, args ...string) (string, error) {
	return run(ctx, "", nil, append([]string{s.admin, "--config", s.config, "-q"}, args...)...)
}

// AdminJSON runs livepatch-admin --json and decodes what it prints.
func (s *Service) AdminJSON(ctx context.Context, into any, args ...string) error {
	out, err := s.Admin(ctx, append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("livepatch-admin %s: %w in\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Token makes an account of this name if there is none, and a token for it.
func (s *Service) Token(ctx context.Context, account string, flags ...string) (api.CreatedToken, error) {
	var accounts []api.Account
	if err := s.AdminJSON(ctx, &accounts, "account", "list"); err != nil {
		return api.CreatedToken{}, err
	}
	known := false
	for _, a := range accounts {
		known = known || a.Name == account
	}
	if !known {
		if _, err := s.Admin(ctx, "account", "create", account); err != nil {
			return api.CreatedToken{}, err
		}
	}
	var token api.CreatedToken
	err := s.AdminJSON(ctx, &token, append([]string{"token", "create", account}, flags...)...)
	return token, err
}

// Publish publishes a module for k, as fixing one vulnerability.
func (s *Service) Publish(ctx context.Context, k *Kernel, module string, flags ...string) (string, error) {
	args := []string{"publish", module, "--fixes", "CVE-2026-1234:high", "--kernel-image", k.Image}
	return s.Admin(ctx, append(args, flags...)...)
}

// Machine is the server's view of the machine with this /etc/machine-id.
func (s *Service) Machine(ctx context.Context, machineID string) (api.Machine, error) {
	var m api.Machine
	err := s.AdminJSON(ctx, &m, "machine", "show", strings.TrimSpace(machineID))
	return m, err
}

// Package builds a Debian package of ours and returns its path.
func (l *Lab) Package(ctx context.Context, dir, name string) (string, error) {
	if _, err := run(ctx, l.Root, nil, "./packaging/build.sh", dir, name); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return "", errors.Join(err, fmt.Errorf("packaging made %d packages of %s", len(debs), name))
	}
	return debs[0], nil
}

// Enrol takes a seat of the token's account for a machine that does not exist.
func (s *Service) Enrol(ctx context.Context, token, hostname string) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	c := api.Client{BaseURL: "https://" + s.listen, HTTP: client}
	_, err = c.Enrol(ctx, api.EnrolRequest{
		Token: token, Hostname: hostname,
		MachineID: digits(hostname)[:32], Credential: digits("credential of " + hostname),
		Kernel: livepatch.Kernel{Release: Release, Arch: "amd64"}, AgentVersion: "none",
	})
	return err
}

// digits is 64 hex digits that are always the same for the same text.
func digits(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Kill ends the server as a crash would.
func (s *Service) Kill() {
	s.cmd.Process.Kill() //nolint:errcheck // has ended already then
	<-s.done
}
