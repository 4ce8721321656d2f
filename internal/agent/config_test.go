package agent

import (
	"os"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/localapi"
)

func TestSettingsAreStrict(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"chek-interval: 60":                    `there is no setting "chek-interval"`,
		"check-interval: often":                `setting check-interval: "often" is not a whole number`,
		"check-interval: -1":                   "from 0 to",
		"dial-timeout: 12":                     "such as 30s or 5m",
		"remote-server: livepatch.example.com": "begins with https://",
		"remote-server: [a, b]":                "must be a single value",
		"log-level: loud":                      "none of debug, info, warning, error",
		"ca-certs: certs/ca.crt":               "absolute path",
		"- remote-server":                      "not a list of settings",
		"soak-time: 15m\nsoak-time: 20m":       "already defined",
		"http-proxy: ftp://proxy":              "begins with http://",
	} {
		_, err := readSettings(strings.NewReader(text), "livepatch.yaml")
		wantError(t, err, livepatch.CodeInvalid, want)
		if err != nil && !strings.Contains(err.Error(), "livepatch.yaml") {
			t.Errorf("%q: the error does not name the file: %v", text, err)
		}
	}
	s, err := readSettings(strings.NewReader("# nothing set\ncheck-interval:\ntransition-timeout: 2m\n"), "f")
	if err != nil || s.minutes("check-interval") != time.Hour || s.duration("transition-timeout") != 2*time.Minute {
		t.Errorf("settings are %v, %v", s, err)
	}
}

func TestUnknownSettingStopsTheStart(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.ok(os.WriteFile(b.o.ConfigFile, []byte("remote-servr: https://x.test\n"), 0o600))
	_, err := New(b.o)
	wantError(t, err, livepatch.CodeInvalid, `"remote-servr"`)
}

// value is one setting as the socket shows it.
func value(c localapi.Config, key string) string {
	for _, s := range c.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return "missing"
}

func TestSetOverridesTheFileAndLasts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.ok(os.WriteFile(b.o.ConfigFile, []byte("check-interval: 30\nremote-server: https://file.test\n"), 0o600))
	b.boot()
	set := func(key, v string) (localapi.Config, error) {
		return b.a.set(t.Context(), localapi.SetConfig{Values: map[string]string{key: v}})
	}
	if got := value(*b.a.shown.Load(), "check-interval"); got != "30" {
		t.Errorf("check-interval is %q, want the file's", got)
	}
	c, err := set("check-interval", "90")
	b.ok(err)
	if got := value(c, "check-interval"); got != "90" {
		t.Errorf("check-interval is %q after set", got)
	}
	_, err = b.a.set(t.Context(), localapi.SetConfig{Values: map[string]string{"check-interval": "5", "no-such": "1"}})
	wantError(t, err, livepatch.CodeInvalid, `"no-such"`)
	b.boot()
	if got := value(*b.a.shown.Load(), "check-interval"); got != "90" {
		t.Errorf("check-interval is %q after a restart, want what was set whole", got)
	}
	c, err = set("check-interval", "")
	b.ok(err)
	if got := value(c, "check-interval"); got != "30" {
		t.Errorf("check-interval is %q after clearing, want the file's", got)
	}
	c, err = set("https-proxy", "http://me:secret@proxy.test:3128")
	b.ok(err)
	if got := value(c, "https-proxy"); strings.Contains(got, "secret") || !strings.Contains(got, "proxy.test") {
		t.Errorf("everybody may read %q", got)
	}
}

func TestBadCertificatesAreNotKept(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.a.o.HTTP = NewHTTP
	_, err := b.a.set(t.Context(), localapi.SetConfig{Values: map[string]string{"ca-certs": "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"}})
	wantError(t, err, livepatch.CodeTLS, "no certificate")
	_, err = b.a.set(t.Context(), localapi.SetConfig{Values: map[string]string{"ca-certs": "/no/such/file"}})
	wantError(t, err, livepatch.CodeTLS, "/no/such/file")
	if got := value(*b.a.shown.Load(), "ca-certs"); got != "" {
		t.Errorf("ca-certs is %q", got)
	}
}

func TestMovedServerIsFollowed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	_, err := b.a.set(t.Context(), localapi.SetConfig{Values: map[string]string{"remote-server": "https://moved.test"}})
	b.ok(err)
	b.boot()
	if b.a.identity.Server != "https://moved.test" {
		t.Errorf("the server is %q", b.a.identity.Server)
	}
	b.publish(1)
	b.refresh()
	b.wantRunning(moduleName(1))
}
