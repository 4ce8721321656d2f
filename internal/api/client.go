package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"livepatch"
)

// maxAnswer bounds what the client reads of one answer, in bytes.
const maxAnswer = 32 << 20

// Client calls the server's /v1 API. Its methods return livepatch.Errors: those
// of the server with the code the server gave, CodeUnavailable when it cannot be
// reached, CodeTLS when its certificate is not acceptable, CodeClock when the
// certificate is refused only because this machine's clock is wrong. They never
// retry and wait as long as their context allows. A Client is ready to use once
// BaseURL is set, and safe for concurrent use while its fields stay as they are.
type Client struct {
	// BaseURL is where the server is, "https://livepatch.example.com:8443".
	BaseURL string
	// Credential is an operator's or a machine's; empty for what everybody may
	// ask.
	Credential string
	// HTTP sends the requests; nil is http.DefaultClient. See NewHTTP.
	HTTP *http.Client
}

func (c *Client) http() *http.Client {
	if c.HTTP == nil {
		return http.DefaultClient
	}
	return c.HTTP
}

// call sends a request with body, when it is not nil, as JSON, and decodes the
// answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var (
		answer T
		r      io.Reader
	)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return answer, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, r)
	if err != nil {
		return answer, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	b, err := c.do(req)
	if err != nil || len(b) == 0 {
		return answer, err
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return answer, livepatch.Errorf(livepatch.CodeUnavailable, "%s does not answer like a livepatch server; check the address: %w", c.BaseURL, err)
	}
	return answer, nil
}

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	base, err := url.Parse(c.BaseURL)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "server address %q is not of the form https://livepatch.example.com:8443", c.BaseURL)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.BaseURL, "/")+path, body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if base.Scheme == "http" && !loopback(base.Hostname()) {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "server address %s is plain http, which is only for this very machine: write https", c.BaseURL)
	}
	req.Header.Set("Accept", "application/json")
	if c.Credential != "" {
		req.Header.Set("Authorization", "Bearer "+c.Credential)
	}
	return req, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// do sends the request and reads the whole answer.
func (c *Client) do(req *http.Request) ([]byte, error) {
	resp, err := c.http().Do(req)
	if err != nil {
		return nil, c.unreachable(req.Context(), err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, c.unreachable(req.Context(), err)
	}
	if len(b) > maxAnswer {
		return nil, livepatch.Errorf(livepatch.CodeUnavailable, "%s answers with more than %d bytes, which no livepatch server does; check the address", c.BaseURL, maxAnswer)
	}
	if resp.StatusCode >= 300 {
		return nil, c.failure(resp, b)
	}
	return b, nil
}

// failure makes an error of an answer that is none of the 2xx.
func (c *Client) failure(resp *http.Response, body []byte) error {
	var p Problem
	if json.Unmarshal(body, &p) == nil && p.Code != "" && p.Detail != "" {
		return &livepatch.Error{Code: p.Code, Message: p.Detail}
	}
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		return livepatch.Errorf(livepatch.CodeUnavailable, "%s answers %q; it may be starting or overloaded, try again later", c.BaseURL, resp.Status)
	}
	return livepatch.Errorf(livepatch.CodeUnavailable, "%s answers %q, and not as a livepatch server; check the address", c.BaseURL, resp.Status)
}

// unreachable explains why no answer came.
func (c *Client) unreachable(ctx context.Context, err error) error {
	var known *livepatch.Error
	if errors.As(err, &known) {
		return known
	}
	if e := c.certificate(ctx, err); e != nil {
		return e
	}
	var dns *net.DNSError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return livepatch.Errorf(livepatch.CodeUnavailable, "interrupted before %s answered: %w", c.BaseURL, err)
	case errors.Is(err, context.DeadlineExceeded):
		return livepatch.Errorf(livepatch.CodeUnavailable, "%s did not answer in time: %w", c.BaseURL, err)
	case errors.As(err, &dns):
		return livepatch.Errorf(livepatch.CodeUnavailable, "the server's name %s cannot be resolved; check the address and this machine's DNS: %w", dns.Name, err)
	}
	return livepatch.Errorf(livepatch.CodeUnavailable, "%s is not reachable; check that the server runs and that nothing blocks the way: %w", c.BaseURL, bare(err))
}

// bare takes the method and address off a url.Error: the sentence around it has
// them already.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// List is the wire form of a list: one page, and where the next one begins.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// all asks for every page of a list.
func all[T any](ctx context.Context, c *Client, path string, q url.Values) ([]T, error) {
	items := []T{}
	for {
		at := path
		if len(q) > 0 {
			at += "?" + q.Encode()
		}
		page, err := call[List[T]](ctx, c, http.MethodGet, at, nil)
		if err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
		if page.Next == "" {
			return items, nil
		}
		if q == nil {
			q = url.Values{}
		}
		q.Set("after", page.Next)
	}
}

// none is the answer of calls that answer nothing.
type none struct{}
