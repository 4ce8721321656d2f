package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"livepatch/internal/api"
)

// events holds an event stream open: server-sent events, HTML Living Standard
// section 9.2.
func (s *Server) events(w http.ResponseWriter, r *http.Request, who caller) error {
	m, err := s.Store.Machine(r.Context(), who.name)
	if err != nil {
		return err
	}
	sub := s.hub.subscribe(m.ID, m.Kernel.Target())
	defer s.hub.unsubscribe(m.ID, sub)
	event, err := json.Marshal(api.Event{Kind: api.EventCheck})
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
	w.WriteHeader(http.StatusOK)
	out := &eventWriter{w: w, ctl: http.NewResponseController(w)}
	out.send(": hello\n\n")
	for out.err == nil {
		alive := time.NewTimer(s.KeepAlive())
		select {
		case <-r.Context().Done():
			out.err = r.Context().Err()
		case <-sub.done:
			alive.Stop()
			return nil
		case <-sub.check:
			out.send("event: " + string(api.EventCheck) + "\ndata: " + string(event) + "\n\n")
		case <-alive.C:
			out.send(": alive\n\n")
		}
		alive.Stop()
	}
	s.Log.Debug("event stream ended", "machine", m.ID, "err", out.err)
	return nil
}

// eventWriter writes and flushes until the first error.
type eventWriter struct {
	w   http.ResponseWriter
	ctl *http.ResponseController
	err error
}

func (e *eventWriter) send(text string) {
	// A peer that takes nothing for this long is gone. The deadline is taken back
	// after the write: HTTP/2 resets the stream at it even when nothing is being
	// written then.
	err := e.deadline(time.Now().Add(quick))
	_, writeErr := e.w.Write([]byte(text))
	e.err = errors.Join(err, writeErr, e.ctl.Flush(), e.deadline(time.Time{}))
}

// deadline sets the time by which writes must be done, where that can be set.
func (e *eventWriter) deadline(t time.Time) error {
	if err := e.ctl.SetWriteDeadline(t); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}
