package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/stream"
)

// config is the operator's configuration file. Paths in it are relative to the
// folder it is in.
type config struct {
	// Server is the server's address, "https://livepatch.example.com:8443".
	Server string `yaml:"server"`
	// Token is the operator's credential.
	Token string `yaml:"token"`
	// CACerts is a PEM file with the authorities to trust in place of the system's.
	CACerts string `yaml:"ca-certs"`
	// Keys is the folder with the offline keys; default "keys" beside the file.
	Keys string `yaml:"keys"`
	// Trust is the fingerprint of the stream's first root, needed only where the
	// folder of keys has no 1.root.json.
	Trust string `yaml:"trust"`
}

func (p *program) config() (config, error) {
	path := p.configPath
	if path == "" {
		path = p.getenv("LIVEPATCH_ADMIN_CONFIG")
	}
	if path == "" {
		home := p.getenv("XDG_CONFIG_HOME")
		if home == "" {
			home = filepath.Join(p.getenv("HOME"), ".config")
		}
		path = filepath.Join(home, "livepatch", "admin.yaml")
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return config{}, livepatch.Errorf(livepatch.CodeInvalid, "there is no configuration at %s: copy the admin.yaml that 'livepatch-server init' wrote, or name it with --config", path)
	}
	if err != nil {
		return config{}, fmt.Errorf("read configuration: %w", err)
	}
	return parseConfig(b, path)
}

func parseConfig(b []byte, path string) (config, error) {
	var c config
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, livepatch.Errorf(livepatch.CodeInvalid, "%s: %s", path, yamlMistake(err))
	}
	if c.Keys == "" {
		c.Keys = "keys"
	}
	for _, f := range []*string{&c.CACerts, &c.Keys} {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(filepath.Dir(path), *f)
		}
	}
	return c, nil
}

// yamlMistake words an error of the YAML decoder in one line and our terms.
func yamlMistake(err error) string {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return err.Error()
	}
	return strings.NewReplacer(
		"field ", "key ",
		"not found in type main.config", "is not known; the keys are server, token, ca-certs, keys, trust",
	).Replace(strings.Join(te.Errors, "; "))
}

// session is a configured connection to the server.
type session struct {
	config
	api     *api.Client
	fetcher stream.Fetcher
}

func (p *program) connect() (*session, error) {
	c, err := p.config()
	if err != nil {
		return nil, err
	}
	if c.Server == "" {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the configuration names no server")
	}
	var ca []byte
	if c.CACerts != "" {
		if ca, err = os.ReadFile(c.CACerts); err != nil {
			return nil, livepatch.Errorf(livepatch.CodeTLS, "ca-certs is not readable: %w", err)
		}
	}
	client, err := api.NewHTTP(ca)
	if err != nil {
		return nil, err
	}
	return &session{
		config:  c,
		api:     &api.Client{BaseURL: c.Server, Credential: c.Token, HTTP: client},
		fetcher: stream.HTTPFetcher{Client: client, Base: c.Server},
	}, nil
}
