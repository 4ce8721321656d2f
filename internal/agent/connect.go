package agent

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/net/http/httpproxy"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/stream"
)

// HTTPOptions is how to reach a server.
type HTTPOptions struct {
	// CACerts is PEM; empty for the system's authorities.
	CACerts []byte
	// The proxies, as the environment variables of these names have them.
	HTTPProxy, HTTPSProxy, NoProxy string
	// DialTimeout is how long connecting may take.
	DialTimeout time.Duration
}

// NewHTTP makes the client that everything goes through: one transport, so that
// checks, events and downloads share one HTTP/2 connection.
func NewHTTP(o HTTPOptions) (*http.Client, error) {
	c, err := api.NewHTTP(o.CACerts)
	if err != nil {
		return nil, err
	}
	t, ok := c.Transport.(*http.Transport)
	if !ok {
		return nil, errors.New("the HTTP client has no transport to configure")
	}
	env := httpproxy.FromEnvironment()
	proxy := (&httpproxy.Config{
		HTTPProxy:  cmp.Or(o.HTTPProxy, env.HTTPProxy),
		HTTPSProxy: cmp.Or(o.HTTPSProxy, env.HTTPSProxy),
		NoProxy:    cmp.Or(o.NoProxy, env.NoProxy),
	}).ProxyFunc()
	t.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	t.DialContext = (&net.Dialer{Timeout: o.DialTimeout}).DialContext
	t.MaxIdleConnsPerHost = 1
	return c, nil
}

// httpOptions reads them from the settings.
func (s settings) httpOptions() (HTTPOptions, error) {
	o := HTTPOptions{
		HTTPProxy: s.get("http-proxy"), HTTPSProxy: s.get("https-proxy"), NoProxy: s.get("no-proxy"),
		DialTimeout: s.duration("dial-timeout"), CACerts: []byte(s.get("ca-certs")),
	}
	if path := s.get("ca-certs"); filepath.IsAbs(path) {
		pem, err := os.ReadFile(path)
		if err != nil {
			return o, livepatch.Errorf(livepatch.CodeTLS, "setting ca-certs: %s is not readable: %w", path, err)
		}
		o.CACerts = pem
	}
	return o, nil
}

// connect returns a client for url with the credential; the connection is shared
// as long as the settings stay.
func (a *Agent) connect(url, credential string) (*api.Client, error) {
	if a.http == nil {
		o, err := a.settings.httpOptions()
		if err != nil {
			return nil, err
		}
		if a.http, err = a.o.HTTP(o); err != nil {
			return nil, err
		}
	}
	return &api.Client{BaseURL: url, Credential: credential, HTTP: a.http}, nil
}

// server is the client of the server that we are enrolled at.
func (a *Agent) server() (*api.Client, error) {
	if a.identity == nil {
		return nil, errNotEnabled
	}
	return a.connect(a.identity.Server, a.identity.Credential)
}

// disconnect drops the shared connection, after settings changed.
func (a *Agent) disconnect() {
	if a.http != nil {
		a.http.CloseIdleConnections()
		a.http = nil
	}
}

var errNotEnabled = livepatch.Errorf(livepatch.CodeNotEnabled, "Machine is not enabled. Run 'livepatch enable TOKEN' as root to begin.")

// fetcher is the way to the stream's files.
func fetcher(c *api.Client) stream.Fetcher {
	return stream.HTTPFetcher{Client: c.HTTP, Base: c.BaseURL}
}

// explain gives errors of the transport a code and a sentence; those that have
// them already stay.
func explain(ctx context.Context, c *api.Client, err error) error {
	var known *livepatch.Error
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return livepatch.Errorf(livepatch.CodeUnavailable, "interrupted before %s answered: %w", c.BaseURL, err)
	}
	return livepatch.Errorf(livepatch.CodeUnavailable, "%s did not deliver the signed stream; check the network: %w", c.BaseURL, err)
}

// The longest that one exchange with the server may take.
const (
	askTimeout      = 2 * time.Minute
	downloadTimeout = 10 * time.Minute
	leaveTimeout    = 10 * time.Second
)
