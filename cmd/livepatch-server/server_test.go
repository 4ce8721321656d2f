package main

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// command runs the program as a person does and returns exit code, output and
// errors.
func command(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

func initialise(t testing.TB, args ...string) (dir, stdout string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	code, out, errs := command(t, append([]string{"init", "--data", dir, "--listen", "127.0.0.1:0"}, args...)...)
	if code != 0 {
		t.Fatalf("init: exit %d: %s", code, errs)
	}
	return dir, out
}

func TestInitKeepsSecretsToItself(t *testing.T) {
	t.Parallel()
	dir, out := initialise(t)
	for _, want := range []string{"livepatch-server serve --data " + dir, "livepatch-admin --config " + filepath.Join(dir, "operator/admin.yaml") + " account create", "sha256:", "can make every machine load"} {
		if !strings.Contains(out, want) {
			t.Errorf("init does not say %q:\n%s", want, out)
		}
	}
	public := []string{"ca.crt", "server.crt", "online-keys.json", "1.root.json"}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || strings.HasPrefix(path, filepath.Join(dir, "blobs")) {
			return err
		}
		info, err := d.Info()
		must(t, err)
		if info.Mode().Perm()&0o077 != 0 && !slices.Contains(public, d.Name()) {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return nil
	}))
	if keys, err := stream.LoadKeys(filepath.Join(dir, "operator/keys")); err != nil || len(keys) != 2 {
		t.Errorf("operator/keys has %d keys (%v), want a root and a signing key", len(keys), err)
	}
}

func TestInitOverwritesNothing(t *testing.T) {
	t.Parallel()
	dir, _ := initialise(t)
	before, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	must(t, err)
	code, _, errs := command(t, "init", "--data", dir)
	after, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	must(t, err)
	if code != cli.ExitConflict || !strings.Contains(errs, "is not empty") || !bytes.Equal(before, after) {
		t.Errorf("a second init: exit %d, %s", code, errs)
	}
}

func TestFailedInitLeavesNothing(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "data")
	empty := t.TempDir()
	for _, dir := range []string{missing, empty} {
		code, _, errs := command(t, "init", "--data", dir, "--tls-cert", "no.crt", "--tls-key", "no.key")
		if code != cli.ExitUsage || !strings.Contains(errs, "--tls-cert") {
			t.Errorf("init with a missing certificate: exit %d, %s", code, errs)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Errorf("%s was left behind", missing)
	}
	if entries, err := os.ReadDir(empty); err != nil || len(entries) > 0 {
		t.Errorf("left behind in %s: %v (%v)", empty, entries, err)
	}
}

func TestInterruptedInitIsRepeated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, unfinished, "operator"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "ca.key"), []byte("half"), 0o600))
	if code, _, errs := command(t, "serve", "--data", dir); code != cli.ExitConflict || !strings.Contains(errs, "run it again") {
		t.Errorf("serve after an interrupted init: exit %d, %s", code, errs)
	}
	if code, _, errs := command(t, "init", "--data", dir); code != 0 {
		t.Fatalf("init after an interrupted one: exit %d, %s", code, errs)
	}
	if _, err := loadAuthority(dir); err != nil {
		t.Errorf("after init: %v", err)
	}
}

func TestServeWithoutInit(t *testing.T) {
	t.Parallel()
	code, _, errs := command(t, "serve", "--data", t.TempDir())
	if code != cli.ExitFailure || !strings.Contains(errs, "livepatch-server init --data") {
		t.Errorf("serve without init: exit %d, %s", code, errs)
	}
}

// TestServeSaysWhatToDoAboutDamage: an error at the start names the next step.
func TestServeSaysWhatToDoAboutDamage(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"database": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "server.db"), bytes.Repeat([]byte("rotten"), 4<<10), 0o600)
		}, "put back the last backup"},
		"server.key": {func(dir string) error { return os.Remove(filepath.Join(dir, "server.key")) }, "--tls-cert and --tls-key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := initialise(t)
			must(t, tt.damage(dir))
			if code, _, errs := command(t, "serve", "--data", dir); code == 0 || !strings.Contains(errs, tt.want) {
				t.Errorf("exit %d, %s; want %q", code, errs, tt.want)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file string
		env, args  []string
		code       int
		want       []string
	}{
		{"defaults", "# nothing\n", nil, nil, 0, []string{`listen: ":8443"`, `check-interval: "1h0m0s"`}},
		{"file", "listen: :9443\nlog-level: debug\n", nil, nil, 0, []string{`listen: ":9443"`, `log-level: "debug"`}},
		{"environment over file", "listen: :9443\n", []string{"LIVEPATCH_SERVER_LISTEN=:1"}, nil, 0, []string{`listen: ":1"`}},
		{"flag over environment", "", []string{"LIVEPATCH_SERVER_LISTEN=:1"}, []string{"--listen", ":2"}, 0, []string{`listen: ":2"`}},
		{"unknown key", "listen: :1\nkeep-alife: 5s\n", nil, nil, cli.ExitUsage, []string{`server.yaml:2: unknown setting "keep-alife"; did you mean keep-alive?`}},
		{"unknown variable", "", []string{"LIVEPATCH_SERVER_LOGLEVEL=x"}, nil, cli.ExitUsage, []string{`"LIVEPATCH_SERVER_LOGLEVEL"; did you mean LIVEPATCH_SERVER_LOG_LEVEL?`}},
		{"nothing like it", "colour: blue\n", nil, nil, cli.ExitUsage, []string{`unknown setting "colour"` + "\n"}},
		{"bad value", "check-interval: often\n", nil, nil, cli.ExitUsage, []string{`server.yaml:1: check-interval: "often"`, "1m to 24h"}},
		{"value out of range", "", nil, []string{"--keep-alive", "5m"}, cli.ExitUsage, []string{"1s to 60s"}},
		{"set twice", "listen: :1\nlisten: :2\n", nil, nil, cli.ExitUsage, []string{"listen"}},
		{"not a mapping", "- listen\n", nil, nil, cli.ExitUsage, []string{"server.yaml:1"}},
		{"plain over the network", "plain-http: true\n", nil, nil, cli.ExitUsage, []string{"loopback"}},
		{"rollouts by default", "", nil, nil, 0, []string{`rollout-policy: "default"`}},
		{"a webhook that anybody could post to", "webhook-url: https://alerts.example.com/\nwebhook-secret: short\n", nil, nil, cli.ExitUsage, []string{"16 bytes"}},
		{"mail to nowhere", "mail-to: ops\n", nil, nil, cli.ExitUsage, []string{"ops@example.com"}},
		{"mail without a server", "mail-to: ops@example.com\nmail-from: lp@example.com\n", nil, nil, cli.ExitUsage, []string{"HOST:PORT"}},
		{"half a certificate", "tls-cert: /a\n", nil, nil, cli.ExitUsage, []string{"tls-key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "server.yaml"), []byte(tt.file), 0o600))
			var out, errs bytes.Buffer
			s := cli.NewStreams(strings.NewReader(""), &out, &errs, func(string) string { return "" })
			p := &program{s: s, now: time.Now, environ: append(tt.env, "LIVEPATCH_SERVER_DATA="+dir, "HOME=/"), hostname: "host"}
			code := cli.Run(t.Context(), p.command(), append([]string{"config"}, tt.args...), s)
			if code != tt.code {
				t.Errorf("exit %d, want %d: %s", code, tt.code, errs.String())
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String()+errs.String(), want) {
					t.Errorf("output has no %q:\n%s%s", want, out.String(), errs.String())
				}
			}
		})
	}
}

// running is a server that serves in the background.
type running struct {
	url  string
	stop func() (code int, log string)
}

type log struct {
	mu    sync.Mutex
	b     bytes.Buffer
	lines chan string
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(p)
	select {
	case l.lines <- string(p):
	default:
	}
	return len(p), nil
}

var listenRE = regexp.MustCompile(`msg=serving listen=(\S+)`)

func serve(t *testing.T, dir string) running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	l := &log{lines: make(chan string, 100)}
	done := make(chan int, 1)
	go func() { done <- run(ctx, []string{"serve", "--data", dir}, strings.NewReader(""), &bytes.Buffer{}, l) }()
	for {
		select {
		case line := <-l.lines:
			if m := listenRE.FindStringSubmatch(line); m != nil {
				return running{"https://" + m[1], func() (int, string) {
					cancel()
					code := <-done
					return code, l.b.String()
				}}
			}
		case code := <-done:
			t.Fatalf("serve: exit %d: %s", code, l.b.String())
		}
	}
}

// client is the operator that init made.
func client(t *testing.T, dir, url string) *api.Client {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "operator/admin.yaml"))
	must(t, err)
	var admin map[string]string
	must(t, yaml.Unmarshal(b, &admin))
	ca, err := os.ReadFile(filepath.Join(dir, "operator", admin["ca-certs"]))
	must(t, err)
	h, err := api.NewHTTP(ca)
	must(t, err)
	t.Cleanup(h.CloseIdleConnections)
	return &api.Client{BaseURL: url, Credential: admin["token"], HTTP: h}
}

func TestServeStopAndServeAgain(t *testing.T) {
	t.Parallel()
	dir, out := initialise(t)
	s := serve(t, dir)
	c := client(t, dir, s.url)
	info, err := c.Info(t.Context())
	must(t, err)
	if info.Trust == "" || !strings.Contains(out, info.Trust) {
		t.Errorf("the stream's fingerprint is %q, init said:\n%s", info.Trust, out)
	}
	_, err = c.CreateAccount(t.Context(), api.NewAccount{Name: "acme"})
	must(t, err)
	tok, err := c.CreateToken(t.Context(), api.NewToken{Account: "acme"})
	must(t, err)
	r := api.EnrolRequest{Token: tok.Secret, MachineID: strings.Repeat("a", 32), Credential: strings.Repeat("b", 64), Hostname: "web1",
		Kernel: livepatch.Kernel{Release: "6.1.0-47-amd64", Arch: "amd64"}}
	_, err = c.Enrol(t.Context(), r)
	must(t, err)
	if code, _, errs := command(t, "serve", "--data", dir); code != cli.ExitConflict || !strings.Contains(errs, "another livepatch-server") {
		t.Errorf("a second server on the folder: exit %d, %s", code, errs)
	}
	// An open event stream must not hold up the shutdown.
	machine := *c
	machine.Credential = r.Credential
	ended := make(chan error, 1)
	for e, err := range machine.Events(t.Context()) {
		if err != nil {
			ended <- err
			break
		}
		if e.Kind == api.Connected {
			if code, text := s.stop(); code != 0 {
				t.Errorf("stopped with exit %d: %s", code, text)
			}
		}
	}
	if livepatch.CodeOf(<-ended) != livepatch.CodeUnavailable {
		t.Error("the event stream did not end as one that broke")
	}
	s = serve(t, dir)
	found, err := client(t, dir, s.url).Machines(t.Context(), api.MachineFilter{})
	must(t, err)
	if len(found) != 1 || found[0].Hostname != "web1" {
		t.Errorf("after a restart the machines are %+v", found)
	}
	if code, text := s.stop(); code != 0 {
		t.Errorf("stopped with exit %d: %s", code, text)
	}
}

func TestOfflineKeysArePushedLater(t *testing.T) {
	t.Parallel()
	dir, out := initialise(t, "--offline-keys", "--host", "127.0.0.1")
	if !strings.Contains(out, "keys create --dir KEYS --online "+filepath.Join(dir, "online-keys.json")) {
		t.Errorf("init does not say how to make the keys:\n%s", out)
	}
	s := serve(t, dir)
	defer s.stop()
	c := client(t, dir, s.url)
	if info, err := c.Info(t.Context()); err != nil || info.Trust != "" {
		t.Errorf("an empty stream has the fingerprint %q (%v)", info.Trust, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "online-keys.json"))
	must(t, err)
	online, err := stream.ParseOnlinePublic(b)
	must(t, err)
	elsewhere := t.TempDir()
	root, err := stream.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{1}, 32)))
	must(t, err)
	signing, err := stream.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{2}, 32)))
	must(t, err)
	must(t, stream.WriteKey(filepath.Join(elsewhere, "root-1.pem"), root))
	first, err := stream.Create(stream.KeySet{Root: []stream.PublicKey{root.Public()}, RootThreshold: 1,
		Signing: []stream.PublicKey{signing.Public()}, SigningThreshold: 1, Online: online}, []stream.Key{root, signing}, stream.Lifetimes{}, time.Now())
	must(t, err)
	must(t, c.Publish(t.Context(), api.Publication(first.Change)))
	if info, err := c.Info(t.Context()); err != nil || info.Trust != stream.Fingerprint(first.Metadata["1.root.json"]) {
		t.Errorf("after the push the fingerprint is %q (%v)", info.Trust, err)
	}
}

func TestCertificateIsRenewedForTheSameNames(t *testing.T) {
	t.Parallel()
	dir, _ := initialise(t, "--host", "livepatch.example.com", "--host", "192.0.2.7")
	load := func() *certificate {
		c := &certificate{certFile: filepath.Join(dir, "server.crt"), keyFile: filepath.Join(dir, "server.key"), now: time.Now}
		must(t, c.load())
		return c
	}
	before := load().current.Leaf
	must(t, renewCertificate(dir, time.Now()))
	if !load().current.Leaf.Equal(before) {
		t.Error("a fresh certificate was made anew")
	}
	must(t, renewCertificate(dir, before.NotAfter.Add(-24*time.Hour)))
	after := load().current.Leaf
	if !after.NotAfter.After(before.NotAfter) || after.VerifyHostname("livepatch.example.com") != nil || after.VerifyHostname("192.0.2.7") != nil || after.VerifyHostname("localhost") != nil {
		t.Errorf("the new certificate is for %v %v until %v", after.DNSNames, after.IPAddresses, after.NotAfter)
	}
}

func TestOperatorsAreReplacedWhileServing(t *testing.T) {
	t.Parallel()
	dir, _ := initialise(t)
	s := serve(t, dir)
	defer s.stop()
	code, out, errs := command(t, "operator", "create", "ann", "--data", dir)
	if code != 0 {
		t.Fatalf("operator create: exit %d: %s", code, errs)
	}
	ann := *client(t, dir, s.url)
	ann.Credential, _, _ = strings.Cut(out, "\n")
	_, err := ann.CreateAccount(t.Context(), api.NewAccount{Name: "acme"})
	must(t, err)
	if code, _, errs := command(t, "operator", "create", "ann", "--data", dir); code != cli.ExitConflict || !strings.Contains(errs, "ann already") {
		t.Errorf("the same name again: exit %d, %s", code, errs)
	}
	if code, _, errs := command(t, "operator", "remove", "operator", "--data", dir); code != 0 {
		t.Errorf("operator remove: exit %d, %s", code, errs)
	}
	if _, err := client(t, dir, s.url).Accounts(t.Context()); livepatch.CodeOf(err) != livepatch.CodeUnauthorized {
		t.Errorf("a removed operator may still list accounts: %v", err)
	}
	if code, out, _ := command(t, "operator", "list", "--data", dir); code != 0 || !strings.Contains(out, "ann") || strings.Contains(out, "operator") {
		t.Errorf("operator list: exit %d, %s", code, out)
	}
	lines, err := ann.Audit(t.Context(), 3)
	must(t, err)
	if lines[0].Action != "operator.remove" || lines[1].Actor != "operator ann" {
		t.Errorf("audit log is %+v", lines)
	}
}

// TestSecretsAreNotShown keeps secrets out of what people paste into tickets.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var out bytes.Buffer
	s := cli.NewStreams(strings.NewReader(""), &out, &out, func(string) string { return "" })
	p := &program{s: s, now: time.Now, hostname: "host", environ: []string{"LIVEPATCH_SERVER_DATA=" + dir,
		"LIVEPATCH_SERVER_WEBHOOK_SECRET=hush-hush-hush-hush", "LIVEPATCH_SERVER_MAIL_PASSWORD=hush-hush"}}
	if code := cli.Run(t.Context(), p.command(), []string{"config"}, s); code != 0 || strings.Contains(out.String(), "hush") {
		t.Errorf("exit %d: %s", code, out.String())
	}
}

// TestUnknownRolloutPolicyIsRefusedAtStart does not wait for the first publication.
func TestUnknownRolloutPolicyIsRefusedAtStart(t *testing.T) {
	t.Parallel()
	dir, _ := initialise(t)
	code, _, errs := command(t, "serve", "--data", dir, "--listen", "127.0.0.1:0", "--rollout-policy", "hasty")
	if code == 0 || !strings.Contains(errs, `no rollout policy "hasty"`) {
		t.Errorf("exit %d: %s", code, errs)
	}
}
