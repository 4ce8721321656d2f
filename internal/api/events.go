package api

import (
	"bufio"
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"livepatch"
)

// eventSilence is how long an event stream may be silent before it is taken for
// dead. The server sends a comment every 30 s or so.
const eventSilence = 95 * time.Second

// Connected is the event that Events yields first, once the server has answered;
// it is not sent by the server.
const Connected EventKind = "connected"

// Events holds the server's event stream open (server-sent events, HTML Living
// Standard section 9.2) and yields Connected and then each event as it comes. It
// ends with an error when the stream breaks, is silent for too long or ctx is
// done; the caller waits a little, with jitter, and calls again. Machine
// credential.
func (c *Client) Events(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		silent := time.AfterFunc(eventSilence, func() {
			cancel(livepatch.Errorf(livepatch.CodeUnavailable, "%s sends no more events", c.BaseURL))
		})
		defer silent.Stop()
		body, err := c.openEvents(ctx)
		if err != nil {
			yield(Event{}, err)
			return
		}
		defer body.Close()
		if !yield(Event{Kind: Connected}, nil) {
			return
		}
		err = readEvents(body, func(e Event) bool {
			return e.Kind == "" || yield(e, nil)
		}, func() { silent.Reset(eventSilence) })
		switch {
		case err == errStopped:
			return
		case context.Cause(ctx) != nil:
			err = context.Cause(ctx)
		}
		yield(Event{}, c.unreachable(ctx, err))
	}
}

func (c *Client) openEvents(ctx context.Context) (io.ReadCloser, error) {
	req, err := c.request(ctx, http.MethodGet, "/v1/events", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := c.http().Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	return nil, c.failure(resp, b)
}

var errStopped = errors.New("the caller wants no more events")

// readEvents reads an event stream to its end, which is always an error: a server
// does not end it. Every line, comments included, is a sign of life. Data is not
// looked at: an event only says that there is something to ask.
func readEvents(r io.Reader, each func(Event) bool, alive func()) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 1024), 64<<10)
	var kind EventKind
	for lines.Scan() {
		alive()
		line := lines.Text()
		if line == "" {
			if !each(Event{Kind: kind}) {
				return errStopped
			}
			kind = ""
			continue
		}
		if name, ok := strings.CutPrefix(line, "event:"); ok {
			kind = EventKind(strings.TrimPrefix(name, " "))
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}
