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
	"net/http"
	"strconv"
	"time"

	"livepatch/internal/api"
)

// SignatureHeader carries "t=UNIX,v1=HEX": HEX is HMAC-SHA-256, under the secret, of
// the time, a dot and the body. Receivers refuse what is older than a few minutes.
const SignatureHeader = "Livepatch-Signature"

// NewWebhook posts alarms to url, each an api.Alarm as JSON, signed with secret.
// client sends them and may be nil for http.DefaultClient.
func NewWebhook(url, secret string, client *http.Client) *Alarms {
	if client == nil {
		client = http.DefaultClient
	}
	return newAlarms("webhook", func(ctx context.Context, a api.Alarm) error {
		body, err := json.Marshal(a)
		if err != nil {
			return fmt.Errorf("encode alarm: %w", err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("make request: %w", err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(SignatureHeader, signature(secret, time.Now(), body))
		return post(client, req)
	})
}

// post sends a request whose answer matters only by its status.
func post(client *http.Client, req *http.Request) error {
	resp, err := client.Do(req)
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
