package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"livepatch/internal/api"
)

// Webhook tells another service of halts and suspicions: an api.Alarm as JSON by
// POST. Make it with NewWebhook.
type Webhook struct {
	// URL is where to post, Secret the key of the signature.
	URL, Secret string
	// HTTP sends; http.DefaultClient by default.
	HTTP *http.Client
	// Delays are the times to wait before each attempt but the first.
	Delays []time.Duration

	queue chan api.Alarm
}

// SignatureHeader carries "t=UNIX,v1=HEX": HEX is HMAC-SHA-256, under the secret, of
// the time, a dot and the body. Receivers refuse what is older than a few minutes.
const SignatureHeader = "Livepatch-Signature"

const (
	// alarmsQueued bounds the alarms that wait for a receiver that does not answer.
	alarmsQueued = 64
	// alarmTime bounds one attempt.
	alarmTime = 15 * time.Second
)

// NewWebhook makes a webhook that tries five times in about a quarter of an hour.
func NewWebhook(url, secret string) *Webhook {
	return &Webhook{URL: url, Secret: secret, HTTP: http.DefaultClient, queue: make(chan api.Alarm, alarmsQueued),
		Delays: []time.Duration{2 * time.Second, 15 * time.Second, 2 * time.Minute, 10 * time.Minute}}
}

// send queues an alarm. It fails when too many wait already; the alarm is in log and
// audit all the same.
func (h *Webhook) send(a api.Alarm) error {
	select {
	case h.queue <- a:
		return nil
	default:
		return fmt.Errorf("%d alarms wait for %s already; %s of rollout %s is not sent", alarmsQueued, h.URL, a.Event, a.Rollout)
	}
}

// run delivers until ctx is done. Alarms that wait then are lost to the receiver.
func (h *Webhook) run(ctx context.Context, log *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-h.queue:
			if err := h.deliver(ctx, a); err != nil {
				log.Error("webhook", "event", a.Event, "rollout", a.Rollout, "err", err)
			}
		}
	}
}

// deliver posts one alarm until the receiver takes it or the attempts are used up.
func (h *Webhook) deliver(ctx context.Context, a api.Alarm) error {
	body, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode alarm: %w", err)
	}
	for try := 0; ; try++ {
		if err = h.post(ctx, body); err == nil || try == len(h.Delays) {
			return err
		}
		wait := time.NewTimer(h.Delays[try])
		select {
		case <-ctx.Done():
			wait.Stop()
			return err
		case <-wait.C:
		}
	}
}

func (h *Webhook) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, alarmTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(SignatureHeader, signature(h.Secret, time.Now(), body))
	resp, err := h.HTTP.Do(req)
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, mib)); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the receiver answers %s", resp.Status)
	}
	return nil
}

// signature is the value of SignatureHeader.
func signature(secret string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
