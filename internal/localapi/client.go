package localapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"livepatch"
)

// maxAnswer bounds what the client reads of one answer, in bytes.
const maxAnswer = 8 << 20

// Client talks to the daemon. Its methods return livepatch.Errors: those of the
// daemon, or CodeUnavailable when it cannot be reached. They wait as long as
// their context allows.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the daemon that listens at socket, usually
// SocketPath. It does not connect yet.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks what the machine is in. CodeNotEnabled when it is not enabled.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, RouteStatus, nil)
}

// Doctor asks the daemon to check every requirement.
func (c *Client) Doctor(ctx context.Context) (Doctor, error) {
	return call[Doctor](ctx, c, RouteDoctor, nil)
}

// Config reads all settings.
func (c *Client) Config(ctx context.Context) (Config, error) {
	return call[Config](ctx, c, RouteConfig, nil)
}

// SetConfig changes settings, all or none, and returns all of them. Root only.
func (c *Client) SetConfig(ctx context.Context, values map[string]string) (Config, error) {
	return call[Config](ctx, c, RouteSet, SetConfig{Values: values})
}

// Enable enrols the machine. Root only.
func (c *Client) Enable(ctx context.Context, r EnableRequest) (EnableResponse, error) {
	return call[EnableResponse](ctx, c, RouteEnable, r)
}

// Disable gives the enrolment up. Root only; no error when not enabled.
func (c *Client) Disable(ctx context.Context) (DisableResponse, error) {
	return call[DisableResponse](ctx, c, RouteDisable, nil)
}

// Refresh checks with the server now and does what the check says. Root only.
func (c *Client) Refresh(ctx context.Context, r RefreshRequest) (RefreshResponse, error) {
	return call[RefreshResponse](ctx, c, RouteRefresh, r)
}

// Unload disables and removes the loaded livepatch. Root only.
func (c *Client) Unload(ctx context.Context) (UnloadResponse, error) {
	return call[UnloadResponse](ctx, c, RouteUnload, nil)
}

// call sends body, when there is one, to a route and decodes the answer.
func call[T any](ctx context.Context, c *Client, route string, body any) (T, error) {
	var answer T
	req, err := request(ctx, route, body)
	if err != nil {
		return answer, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer, c.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return answer, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 300 {
		return answer, failure(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return answer, livepatch.Errorf(livepatch.CodeInternal, "livepatchd answered something else than its own protocol; restart it if it was just upgraded: %w", err)
	}
	return answer, nil
}

func request(ctx context.Context, route string, body any) (*http.Request, error) {
	method, path, _ := strings.Cut(route, " ")
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://livepatchd"+path, r)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, nil
}

// unreachable explains why no answer came. The cause is kept for logs; the
// sentence does without Go's words for it.
func (c *Client) unreachable(ctx context.Context, err error) error {
	e := &livepatch.Error{Code: livepatch.CodeUnavailable, Err: err}
	var op *net.OpError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.Message = "livepatchd did not answer in time; look at 'journalctl -u livepatchd'"
	case ctx.Err() != nil:
		e.Message = "interrupted before livepatchd answered; it goes on with what it was told"
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Message = livepatch.CodeNotPrivileged, "this user may not connect to "+c.socket
	case errors.As(err, &op) && op.Op == "dial":
		e.Message = "livepatchd is not running (nothing answers at " + c.socket + "); start it with 'systemctl start livepatchd'"
	default:
		e.Message = "livepatchd went away before it answered; look at 'journalctl -u livepatchd'"
	}
	return e
}

// failure makes an error of an answer that is none of the 2xx.
func failure(status int, body []byte) error {
	var f Failure
	if json.Unmarshal(body, &f) != nil || f.Detail == "" || f.Code == "" {
		return livepatch.Errorf(livepatch.CodeInternal, "livepatchd answered with status %d and no reason; look at 'journalctl -u livepatchd'", status)
	}
	return &livepatch.Error{Code: f.Code, Message: f.Detail}
}
