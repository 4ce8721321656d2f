package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"livepatch/internal/api"
)

// TestWebhookIsSignedAndTriedAgain has a receiver that is down at first.
func TestWebhookIsSignedAndTriedAgain(t *testing.T) {
	t.Parallel()
	const secret = "0123456789abcdef"
	type got struct {
		header string
		body   []byte
	}
	posts := make(chan got, 10)
	var attempts atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if attempts.Add(1) < 3 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		posts <- got{r.Header.Get(SignatureHeader), body}
	}))
	defer receiver.Close()
	hook := NewWebhook(receiver.URL, secret, nil)
	hook.Delays = []time.Duration{0, 0, 0}
	f := newFleet(t, 3, 0)
	f.Alarms = []*Alarms{hook}
	go func() { _ = hook.run(t.Context(), slog.New(slog.DiscardHandler)) }()
	f.publish(t, kernel, "one")
	id := f.only().ID
	_, err := f.operator.Operate(t.Context(), id, "halt", "it oopses")
	must(t, err)
	p := wait(t, t.Context(), posts, "post to the webhook")
	at, mac, ok := strings.Cut(strings.TrimPrefix(p.header, "t="), ",v1=")
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(at + "."))
	h.Write(p.body)
	if want := hex.EncodeToString(h.Sum(nil)); !ok || mac != want {
		t.Errorf("signature is %q, want v1=%s", p.header, want)
	}
	var a api.Alarm
	must(t, json.Unmarshal(p.body, &a))
	if a.Event != "rollout.halt" || a.Rollout != id || a.Change.Reason != "it oopses" || a.Change.Actor != "operator ann" {
		t.Errorf("the alarm is %+v", a)
	}
}

// TestWebhookGivesUp has a receiver that never answers well, and one that lets
// alarms pile up.
func TestWebhookGivesUp(t *testing.T) {
	t.Parallel()
	var attempts atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		attempts.Add(1)
		w.WriteHeader(http.StatusTeapot)
	}))
	defer receiver.Close()
	hook := NewWebhook(receiver.URL, "0123456789abcdef", nil)
	hook.Delays = []time.Duration{0, 0}
	if err := hook.deliver(t.Context(), api.Alarm{}); err == nil || attempts.Load() != 3 || !strings.Contains(err.Error(), "teapot") {
		t.Errorf("after %d attempts: %v", attempts.Load(), err)
	}
	var err error
	for range alarmsQueued + 1 {
		err = hook.send(api.Alarm{Event: "rollout.halt", Rollout: "r1"})
	}
	if err == nil || !strings.Contains(err.Error(), "r1") {
		t.Errorf("too many alarms: %v", err)
	}
}
