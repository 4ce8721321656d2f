package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"livepatch"
)

// NewHTTP states them for people.
const (
	dialTimeout   = 10 * time.Second
	headerTimeout = 60 * time.Second
)

// NewHTTP makes an HTTP client for Client.HTTP: HTTP/2 where the server has it,
// connecting takes at most 10 s, waiting for an answer's first byte 60 s, and a
// connection that is silently dead is noticed in 45 s. caCerts is PEM; the
// authorities in it are trusted besides the system's, as the setting ca-certs of the
// Canonical client says it.
func NewHTTP(caCerts []byte) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(caCerts) > 0 {
		conf.RootCAs = systemRoots()
		if !conf.RootCAs.AppendCertsFromPEM(caCerts) {
			return nil, livepatch.Errorf(livepatch.CodeTLS, "ca-certs holds no certificate in PEM form: give it the server's ca.crt")
		}
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialer.DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}}, nil
}

// systemRoots are the authorities that the system trusts, none where it has no such
// list: a minimal machine may have only the server's own authority.
func systemRoots() *x509.CertPool {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return x509.NewCertPool()
	}
	return roots
}

// certificate explains an error that is about the server's certificate; nil when
// it is about something else.
func (c *Client) certificate(ctx context.Context, err error) error {
	var (
		invalid   x509.CertificateInvalidError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return c.outOfDate(ctx, invalid)
	case errors.As(err, &authority):
		return livepatch.Errorf(livepatch.CodeTLS, "the certificate of %s is not signed by an authority that this machine trusts; set ca-certs to the server's ca.crt (on a machine, as root: livepatch config ca-certs=@stdin < ca.crt): %w", c.BaseURL, bare(err))
	case errors.As(err, &host):
		return livepatch.Errorf(livepatch.CodeTLS, "the certificate of %s is for another name, %s; use a name it is for, or give the server a certificate for this one: %w", c.BaseURL, names(host.Certificate), bare(err))
	case errors.As(err, &verify), errors.As(err, &invalid):
		return livepatch.Errorf(livepatch.CodeTLS, "the certificate of %s is not acceptable; check the server's certificate and ca-certs: %w", c.BaseURL, bare(err))
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return livepatch.Errorf(livepatch.CodeTLS, "%s does not speak TLS; check address and port: %w", c.BaseURL, bare(err))
	}
	return nil
}

// names lists what a certificate is for, at most five.
func names(cert *x509.Certificate) string {
	list := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		list = append(list, ip.String())
	}
	if len(list) == 0 {
		return "or rather none"
	}
	return strings.Join(list[:min(len(list), 5)], ", ")
}

// outOfDate tells a wrong clock from an expired certificate. x509 says "expired"
// for not yet valid, too.
func (c *Client) outOfDate(ctx context.Context, invalid x509.CertificateInvalidError) error {
	cert, server := invalid.Cert, c.serverDate(ctx)
	inside := !server.Before(cert.NotBefore) && !server.After(cert.NotAfter)
	switch {
	case !server.IsZero() && inside:
		return livepatch.Errorf(livepatch.CodeClock, "this machine's clock differs from the server's, which says %s: set the clock, the certificate of %s is valid from %s to %s",
			server.UTC().Format(time.DateTime), c.BaseURL, cert.NotBefore.UTC().Format(time.DateOnly), cert.NotAfter.UTC().Format(time.DateOnly))
	default:
		return livepatch.Errorf(livepatch.CodeTLS, "the certificate of %s is valid from %s to %s only: renew it on the server (or, if this machine's clock is wrong, set it): %w",
			c.BaseURL, cert.NotBefore.UTC().Format(time.DateOnly), cert.NotAfter.UTC().Format(time.DateOnly), invalid)
	}
}

// serverDate asks for the server's clock without trusting its certificate; zero
// when there is no answer. What it says only words an error.
func (c *Client) serverDate(ctx context.Context) time.Time {
	t, ok := c.http().Transport.(*http.Transport)
	if !ok {
		return time.Time{}
	}
	t = t.Clone()
	defer t.CloseIdleConnections()
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.TLSClientConfig.InsecureSkipVerify = true
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	anonymous := Client{BaseURL: c.BaseURL}
	req, err := anonymous.request(ctx, http.MethodGet, "/v1/info", nil)
	if err != nil {
		return time.Time{}
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return time.Time{}
	}
	defer resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return date
}
