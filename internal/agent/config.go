package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"livepatch"
	"livepatch/internal/localapi"
)

// settings are the values of all keys in text. They come from the defaults, the
// administrator's file and, above both, what `livepatch config` set.
type settings map[string]string

// setting is one key: what it may hold and what it means.
type setting struct {
	key, def string
	kind     localapi.SettingKind
	unit     string
	check    func(string) error
}

// settingTable lists every key in the order in which they are shown. The first ones
// and their meaning are those of the Canonical client.
func settingTable() []setting {
	return []setting{
		{key: "http-proxy", kind: localapi.KindString, check: checkURL("http", "https", "socks5")},
		{key: "https-proxy", kind: localapi.KindString, check: checkURL("http", "https", "socks5")},
		{key: "no-proxy", kind: localapi.KindString, check: anything},
		{key: "remote-server", kind: localapi.KindString, check: checkURL("https", "http")},
		// PEM text, or the absolute path of a file with it.
		{key: "ca-certs", kind: localapi.KindString, check: checkCerts},
		{key: "dial-timeout", def: "12s", kind: localapi.KindString, check: checkDuration(100*time.Millisecond, 10*time.Minute)},
		// 0 turns checks by the clock off; events still cause them.
		{key: "check-interval", def: "60", kind: localapi.KindInteger, unit: "minutes", check: checkInteger(0, 7*24*60)},
		{key: "log-level", def: "info", kind: localapi.KindString, check: checkLevel},
		// How long a transition may take before it is reversed.
		{key: "transition-timeout", def: "60s", kind: localapi.KindString, check: checkDuration(time.Second, time.Hour)},
		// How long a patch is watched after a load before it counts as healthy.
		{key: "soak-time", def: "15m", kind: localapi.KindString, check: checkDuration(time.Second, 7*24*time.Hour)},
	}
}

func findSetting(key string) (setting, error) {
	table := settingTable()
	for _, s := range table {
		if s.key == key {
			return s, nil
		}
	}
	keys := make([]string, 0, len(table))
	for _, s := range table {
		keys = append(keys, s.key)
	}
	return setting{}, livepatch.Errorf(livepatch.CodeInvalid, "there is no setting %q; the settings are %s", key, strings.Join(keys, ", "))
}

// readSettings reads strict YAML, "key: value" and nothing else. from names the
// source in errors.
func readSettings(r io.Reader, from string) (settings, error) {
	var nodes map[string]yaml.Node
	if err := yaml.NewDecoder(r).Decode(&nodes); err != nil && !errors.Is(err, io.EOF) {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "%s is not a list of settings of the form \"key: value\": %w", from, err)
	}
	values := settings{}
	for key, node := range nodes {
		if node.Kind != yaml.ScalarNode {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "%s: %s must be a single value", from, key)
		}
		values[key] = node.Value
		if node.Tag == "!!null" {
			values[key] = ""
		}
	}
	if err := values.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return values, nil
}

func readSettingsFile(path string) (settings, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return settings{}, nil
	}
	if err != nil {
		return nil, diskError(path, err)
	}
	defer f.Close()
	return readSettings(io.LimitReader(f, maxStateFile), path)
}

// validate checks every key and value; an empty value means the default.
func (s settings) validate() error {
	for key, value := range s {
		known, err := findSetting(key)
		if err != nil {
			return err
		}
		if value == "" {
			continue
		}
		if err := known.check(value); err != nil {
			return livepatch.Errorf(livepatch.CodeInvalid, "setting %s: %w", key, err)
		}
	}
	return nil
}

// with returns s overridden by the values that are not empty.
func (s settings) with(over settings) settings {
	merged := settings{}
	for _, layer := range []settings{s, over} {
		for key, value := range layer {
			if value != "" {
				merged[key] = value
			}
		}
	}
	return merged
}

// encode is YAML with the keys in their order.
func (s settings) encode() ([]byte, error) {
	b, err := yaml.Marshal(map[string]string(s)) // sorts the keys
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	return b, nil
}

func (s settings) get(key string) string {
	if v := s[key]; v != "" {
		return v
	}
	known, err := findSetting(key)
	if err != nil {
		panic(err) // a typing error in this package
	}
	return known.def
}

// duration and minutes parse values that validate has accepted.
func (s settings) duration(key string) time.Duration {
	d, _ := time.ParseDuration(s.get(key))
	return d
}

func (s settings) minutes(key string) time.Duration {
	n, _ := strconv.Atoi(s.get(key))
	return time.Duration(n) * time.Minute
}

func (s settings) level() slog.Level {
	l, _ := parseLevel(s.get("log-level"))
	return l
}

// show lists all settings for people. Passwords in proxy addresses are left out:
// everybody may read settings.
func (s settings) show() localapi.Config {
	c := localapi.Config{Settings: []localapi.Setting{}}
	for _, known := range settingTable() {
		value := s.get(known.key)
		if u, err := url.Parse(value); err == nil && u.User != nil {
			value = u.Redacted()
		}
		c.Settings = append(c.Settings, localapi.Setting{Key: known.key, Value: value, Kind: known.kind, Unit: known.unit})
	}
	return c
}

func anything(string) error { return nil }

func checkURL(schemes ...string) func(string) error {
	return func(s string) error {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || !slices.Contains(schemes, u.Scheme) {
			return fmt.Errorf("%q is not an address that begins with %s://", s, strings.Join(schemes, ":// or "))
		}
		return nil
	}
}

func checkCerts(s string) error {
	if filepath.IsAbs(s) || strings.Contains(s, "-----BEGIN CERTIFICATE-----") {
		return nil
	}
	return errors.New("give it PEM certificates or the absolute path of a file with them")
}

func checkDuration(low, high time.Duration) func(string) error {
	return func(s string) error {
		if d, err := time.ParseDuration(s); err != nil || d < low || d > high {
			return fmt.Errorf("%q is not a time from %s to %s, such as 30s or 5m", s, low, high)
		}
		return nil
	}
}

func checkInteger(low, high int) func(string) error {
	return func(s string) error {
		if n, err := strconv.Atoi(s); err != nil || n < low || n > high {
			return fmt.Errorf("%q is not a whole number from %d to %d", s, low, high)
		}
		return nil
	}
}

func checkLevel(s string) error {
	_, err := parseLevel(s)
	return err
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warning", "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is none of debug, info, warning, error", s)
}
