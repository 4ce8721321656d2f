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
	// A peer that takes nothing for this long is gone.
	err := e.ctl.SetWriteDeadline(time.Now().Add(quick))
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	_, writeErr := e.w.Write([]byte(text))
	e.err = errors.Join(err, writeErr, e.ctl.Flush())
}
