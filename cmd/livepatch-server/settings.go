package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"livepatch"
)

// envPrefix begins the names of settings in the environment.
const envPrefix = "LIVEPATCH_SERVER_"

// settings is how the server is to run.
type settings struct {
	Listen         string
	PublicURL      string
	TLSCert        string
	TLSKey         string
	PlainHTTP      bool
	CheckInterval  time.Duration
	KeepAlive      time.Duration
	EnrolPerMinute int
	LogLevel       slog.Level
	RolloutPolicy  string
	WebhookURL     string
	WebhookSecret  string
	MailTo         string
	MailFrom       string
	MailServer     string
	MailUser       string
	MailPassword   string
}

func defaults() settings {
	return settings{Listen: ":8443", CheckInterval: time.Hour, KeepAlive: 30 * time.Second, EnrolPerMinute: 30, RolloutPolicy: "default"}
}

// key is one setting: its name in file and flag, and in capitals with underscores
// in the environment.
type key struct {
	name, help string
	get        func(settings) string
	set        func(*settings, string) error
}

// keys are all settings.
func keys() []key {
	return []key{
		{"listen", "address to serve on, HOST:PORT or :PORT",
			func(s settings) string { return s.Listen }, func(s *settings, v string) error { s.Listen = v; return nil }},
		{"public-url", "how machines reach the server; part of the commands for token holders",
			func(s settings) string { return s.PublicURL }, func(s *settings, v string) error { s.PublicURL = strings.TrimSuffix(v, "/"); return nil }},
		{"tls-cert", "file with the server's certificate and its chain in PEM; read again when it changes",
			func(s settings) string { return s.TLSCert }, func(s *settings, v string) error { s.TLSCert = v; return nil }},
		{"tls-key", "file with the certificate's private key in PEM",
			func(s settings) string { return s.TLSKey }, func(s *settings, v string) error { s.TLSKey = v; return nil }},
		{"plain-http", "serve without TLS; only on a loopback address, for a proxy on the same host that sets X-Forwarded-For",
			func(s settings) string { return strconv.FormatBool(s.PlainHTTP) }, func(s *settings, v string) (err error) { s.PlainHTTP, err = strconv.ParseBool(v); return err }},
		{"check-interval", "how often machines check in when nothing happens, 1m to 24h",
			func(s settings) string { return s.CheckInterval.String() }, func(s *settings, v string) (err error) { s.CheckInterval, err = time.ParseDuration(v); return err }},
		{"keep-alive", "how often an idle event stream shows that it is alive, 1s to 60s",
			func(s settings) string { return s.KeepAlive.String() }, func(s *settings, v string) (err error) { s.KeepAlive, err = time.ParseDuration(v); return err }},
		{"enrol-per-minute", "how many enrolments one address may try in a minute",
			func(s settings) string { return strconv.Itoa(s.EnrolPerMinute) }, func(s *settings, v string) (err error) { s.EnrolPerMinute, err = strconv.Atoi(v); return err }},
		{"rollout-policy", "policy of livepatches that are published without --policy: default (stages), everybody (all at once) or one of yours",
			func(s settings) string { return s.RolloutPolicy }, func(s *settings, v string) error { s.RolloutPolicy = v; return nil }},
		{"webhook-url", "where halts and suspicions are posted, as JSON",
			func(s settings) string { return s.WebhookURL }, func(s *settings, v string) error { s.WebhookURL = v; return nil }},
		{"webhook-secret", "key of the webhook's signature, at least 16 bytes; best set in the environment. Not shown",
			func(settings) string { return "" }, func(s *settings, v string) error { s.WebhookSecret = v; return nil }},
		{"mail-to", "who gets mail of halts and suspicions, addresses with commas between",
			func(s settings) string { return s.MailTo }, func(s *settings, v string) error { s.MailTo = strings.ReplaceAll(v, " ", ""); return nil }},
		{"mail-from", "the sender of these mails",
			func(s settings) string { return s.MailFrom }, func(s *settings, v string) error { s.MailFrom = v; return nil }},
		{"mail-server", "HOST:PORT of the mail server that takes them; STARTTLS is used where it is offered",
			func(s settings) string { return s.MailServer }, func(s *settings, v string) error { s.MailServer = v; return nil }},
		{"mail-user", "who to log in as at the mail server; empty for no login",
			func(s settings) string { return s.MailUser }, func(s *settings, v string) error { s.MailUser = v; return nil }},
		{"mail-password", "password for mail-user; best set in the environment. Not shown",
			func(settings) string { return "" }, func(s *settings, v string) error { s.MailPassword = v; return nil }},
		{"log-level", "debug (every request), info, warn or error",
			func(s settings) string { return strings.ToLower(s.LogLevel.String()) }, func(s *settings, v string) error { return s.LogLevel.UnmarshalText([]byte(v)) }},
	}
}

// addFlags gives c a flag for every setting, and --data and --config.
func (p *program) addFlags(c *cobra.Command) {
	c.Flags().StringVar(&p.data, "data", "", "the data folder that init made (or "+envPrefix+"DATA)")
	c.Flags().StringVar(&p.config, "config", "", "file of settings that go on top of DATA/server.yaml (or "+envPrefix+"CONFIG)")
	_ = c.MarkFlagDirname("data")
	_ = c.MarkFlagFilename("config", "yaml")
	for _, k := range keys() {
		c.Flags().String(k.name, "", k.help)
	}
}

// settings reads, each on top of the one before: defaults, DATA/server.yaml, the
// file of --config, the environment, the flags.
func (p *program) settings(c *cobra.Command) (settings, error) {
	s := defaults()
	env, err := p.environment()
	if err != nil {
		return s, err
	}
	for name, to := range map[string]*string{"data": &p.data, "config": &p.config} {
		if *to == "" {
			*to = env[name]
		}
		delete(env, name)
	}
	if p.data == "" {
		return s, livepatch.Errorf(livepatch.CodeInvalid, "say where the data folder is: --data DIR (or %sDATA)", envPrefix)
	}
	if p.data, err = filepath.Abs(p.data); err != nil {
		return s, fmt.Errorf("find the data folder: %w", err)
	}
	files := []string{filepath.Join(p.data, "server.yaml")}
	if p.config != "" {
		files = append(files, p.config)
	}
	for i, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) && i == 0 {
			continue
		}
		if err != nil {
			return s, livepatch.Errorf(livepatch.CodeInvalid, "settings cannot be read: %w", err)
		}
		if err := s.readYAML(file, b); err != nil {
			return s, err
		}
	}
	for name, value := range env {
		if err := s.put(envName(name), name, value); err != nil {
			return s, err
		}
	}
	for _, k := range keys() {
		if f := c.Flags().Lookup(k.name); f != nil && f.Changed {
			if err := s.put("--"+k.name, k.name, f.Value.String()); err != nil {
				return s, err
			}
		}
	}
	return s, s.validate()
}

func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// environment is what the environment sets, by key; a variable of ours that is no
// setting is an error.
func (p *program) environment() (map[string]string, error) {
	set := map[string]string{}
	for _, e := range p.environ {
		name, value, _ := strings.Cut(e, "=")
		rest, ok := strings.CutPrefix(name, envPrefix)
		if !ok {
			continue
		}
		key := strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
		if key != "data" && key != "config" && !known(key) {
			return nil, unknownKey("environment", name, key, envName)
		}
		set[key] = value
	}
	return set, nil
}

func known(name string) bool {
	return slices.ContainsFunc(keys(), func(k key) bool { return k.name == name })
}

// readYAML takes in a file: one mapping of known keys to single values.
func (s *settings) readYAML(file string, b []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "%s is not YAML: %w", file, err)
	}
	if len(doc.Content) == 0 {
		return nil // nothing but comments
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return livepatch.Errorf(livepatch.CodeInvalid, "%s:%d: settings are lines of the form \"listen: :8443\"", file, top.Line)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		name, value := top.Content[i], top.Content[i+1]
		at := fmt.Sprintf("%s:%d", file, name.Line)
		switch {
		case !known(name.Value):
			return unknownKey(at, name.Value, name.Value, func(k string) string { return k })
		case seen[name.Value]:
			return livepatch.Errorf(livepatch.CodeInvalid, "%s: %s is set twice", at, name.Value)
		case value.Kind != yaml.ScalarNode:
			return livepatch.Errorf(livepatch.CodeInvalid, "%s: %s takes one value", at, name.Value)
		}
		seen[name.Value] = true
		if err := s.put(at+": "+name.Value, name.Value, value.Value); err != nil {
			return err
		}
	}
	return nil
}

// put sets one setting; where says where the value is from.
func (s *settings) put(where, name, value string) error {
	for _, k := range keys() {
		if k.name != name {
			continue
		}
		if err := k.set(s, value); err != nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "%s: %q is not a value for it (%s)", where, value, k.help)
		}
		return nil
	}
	return unknownKey(where, name, name, func(k string) string { return k })
}

// unknownKey names the key that is not one, and the one that was probably meant.
func unknownKey(where, as, name string, spell func(string) string) error {
	hint := ""
	best := len(name)/2 + 1
	for _, k := range keys() {
		if d := distance(name, k.name); d < best {
			best, hint = d, "; did you mean "+spell(k.name)+"?"
		}
	}
	return livepatch.Errorf(livepatch.CodeInvalid, "%s: unknown setting %q%s", where, as, hint)
}

// distance is how many letters must be added, taken away or changed to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// validate checks what single values cannot tell.
func (s settings) validate() error {
	host, _, err := net.SplitHostPort(s.Listen)
	switch {
	case err != nil:
		return livepatch.Errorf(livepatch.CodeInvalid, "listen: %q is not HOST:PORT or :PORT", s.Listen)
	case s.PlainHTTP && host != "localhost" && !net.ParseIP(host).IsLoopback():
		return livepatch.Errorf(livepatch.CodeInvalid, "plain-http is for loopback addresses only, and listen is %q; credentials must not cross a network unencrypted", s.Listen)
	case (s.TLSCert == "") != (s.TLSKey == ""):
		return livepatch.Errorf(livepatch.CodeInvalid, "tls-cert and tls-key belong together; set both or none")
	case s.CheckInterval < time.Minute || s.CheckInterval > 24*time.Hour:
		return livepatch.Errorf(livepatch.CodeInvalid, "check-interval %s is outside 1m to 24h", s.CheckInterval)
	case s.KeepAlive < time.Second || s.KeepAlive > time.Minute:
		return livepatch.Errorf(livepatch.CodeInvalid, "keep-alive %s is outside 1s to 60s", s.KeepAlive)
	case s.EnrolPerMinute < 1:
		return livepatch.Errorf(livepatch.CodeInvalid, "enrol-per-minute %d is below 1", s.EnrolPerMinute)
	}
	if s.PublicURL != "" && !isURL(s.PublicURL) {
		return livepatch.Errorf(livepatch.CodeInvalid, "public-url %q is not of the form https://livepatch.example.com:8443", s.PublicURL)
	}
	return s.validateRollouts()
}

func (s settings) validateRollouts() error {
	switch {
	case s.RolloutPolicy == "":
		return livepatch.Errorf(livepatch.CodeInvalid, "rollout-policy is empty; name a policy, default or everybody")
	case s.WebhookURL != "" && !isURL(s.WebhookURL):
		return livepatch.Errorf(livepatch.CodeInvalid, "webhook-url %q is not of the form https://alerts.example.com/livepatch", s.WebhookURL)
	case s.WebhookURL != "" && len(s.WebhookSecret) < 16:
		return livepatch.Errorf(livepatch.CodeInvalid, "webhook-secret has less than 16 bytes; without a good one the receiver cannot tell who posts")
	case s.MailTo == "":
		return nil
	}
	for _, a := range append(strings.Split(s.MailTo, ","), s.MailFrom) {
		if at, err := mail.ParseAddress(a); err != nil || at.Address != a {
			return livepatch.Errorf(livepatch.CodeInvalid, "mail-to and mail-from are addresses such as ops@example.com, and %q is not", a)
		}
	}
	if _, _, err := net.SplitHostPort(s.MailServer); err != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "mail-server %q is not HOST:PORT", s.MailServer)
	}
	return nil
}

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http")
}
