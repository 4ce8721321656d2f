package api_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/api"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode fails unless err has the code and its text contains all of words.
func wantCode(t testing.TB, err error, code livepatch.Code, words ...string) {
	t.Helper()
	if livepatch.CodeOf(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, livepatch.CodeOf(err), code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not contain %q", err, w)
		}
	}
}

// serve starts a TLS server whose certificate is valid from and until, for hosts.
// It returns the server and the certificate in PEM.
func serve(t *testing.T, from, until time.Time, hosts []string, h http.HandlerFunc) (*httptest.Server, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// client returns a client that trusts ca, on a machine whose clock says now.
func client(t *testing.T, url string, ca []byte, now time.Time) *api.Client {
	t.Helper()
	h, err := api.NewHTTP(ca)
	must(t, err)
	h.Transport.(*http.Transport).TLSClientConfig.Time = func() time.Time { return now }
	t.Cleanup(h.CloseIdleConnections)
	return &api.Client{BaseURL: url, HTTP: h}
}

func info(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"version":"1.2.3"}`)
}

func TestCertificateErrors(t *testing.T) {
	t.Parallel()
	now := time.Now()
	day := 24 * time.Hour
	local := []string{"127.0.0.1", "localhost"}
	good, ca := serve(t, now.Add(-day), now.Add(day), local, info)
	expired, oldCA := serve(t, now.Add(-2*day), now.Add(-day), local, info)
	named, otherCA := serve(t, now.Add(-day), now.Add(day), []string{"livepatch.example.com"}, info)
	plain := httptest.NewServer(http.HandlerFunc(info))
	t.Cleanup(plain.Close)
	for _, tt := range []struct {
		name  string
		c     *api.Client
		code  livepatch.Code
		words []string
	}{
		{"fine", client(t, good.URL, ca, now), "", nil},
		{"unknown authority", client(t, good.URL, oldCA, now), livepatch.CodeTLS, []string{"ca-certs", good.URL}},
		{"system's authorities", client(t, good.URL, nil, now), livepatch.CodeTLS, []string{"ca-certs"}},
		{"another name", client(t, named.URL, otherCA, now), livepatch.CodeTLS, []string{"another name", "livepatch.example.com"}},
		{"expired", client(t, expired.URL, oldCA, now), livepatch.CodeTLS, []string{"renew it", now.Add(-day).UTC().Format(time.DateOnly)}},
		{"clock behind", client(t, good.URL, ca, now.Add(-1000*day)), livepatch.CodeClock, []string{"clock", now.UTC().Format(time.DateOnly)}},
		{"clock ahead", client(t, good.URL, ca, now.Add(1000*day)), livepatch.CodeClock, []string{"set the clock"}},
		{"no TLS there", client(t, strings.Replace(plain.URL, "http:", "https:", 1), ca, now), livepatch.CodeTLS, []string{"does not speak TLS"}},
		{"plain over the network", client(t, "http://192.0.2.1", nil, now), livepatch.CodeInvalid, []string{"https"}},
		{"no address", client(t, "livepatch.example.com", nil, now), livepatch.CodeInvalid, []string{"https://"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := tt.c.Info(t.Context())
			wantCode(t, err, tt.code, tt.words...)
		})
	}
}

func TestBadCACertsAreRefused(t *testing.T) {
	t.Parallel()
	_, err := api.NewHTTP([]byte("not a certificate"))
	wantCode(t, err, livepatch.CodeTLS, "ca-certs")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	url := "https://" + l.Addr().String()
	must(t, l.Close())
	_, err = (&api.Client{BaseURL: url}).Info(t.Context())
	wantCode(t, err, livepatch.CodeUnavailable, url, "not reachable")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = (&api.Client{BaseURL: url}).Info(ctx)
	wantCode(t, err, livepatch.CodeUnavailable, "interrupted")
}

func TestAnswersThatAreNoServer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		code   livepatch.Code
		word   string
	}{
		{"problem", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(api.Problem{Status: 409, Code: livepatch.CodeSeatLimit, Detail: "all taken"})
		}, livepatch.CodeSeatLimit, "all taken"},
		{"bad gateway", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, livepatch.CodeUnavailable, "try again"},
		{"another site", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusNotFound) }, livepatch.CodeUnavailable, "check the address"},
		{"a page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, livepatch.CodeUnavailable, "check the address"},
		{"a hang-up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, livepatch.CodeUnavailable, "not reachable"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(tt.answer)
			defer srv.Close()
			_, err := (&api.Client{BaseURL: srv.URL}).Info(t.Context())
			wantCode(t, err, tt.code, tt.word)
		})
	}
}

func TestListsFollowPages(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page := api.List[api.Machine]{Items: []api.Machine{{ID: "m-1"}}, Next: "m-1"}
		if r.URL.Query().Get("after") == "m-1" {
			page = api.List[api.Machine]{Items: []api.Machine{{ID: "m-2"}}}
		}
		if r.URL.Query().Get("kernel") != "6.1.0" {
			http.Error(w, "filter lost", http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(page)
	}))
	defer srv.Close()
	got, err := (&api.Client{BaseURL: srv.URL}).Machines(t.Context(), api.MachineFilter{Kernel: "6.1.0"})
	must(t, err)
	if len(got) != 2 || got[1].ID != "m-2" {
		t.Errorf("machines are %+v, want m-1 and m-2", got)
	}
}

// silentStream is a transport whose event stream sends what script writes.
type silentStream struct{ script func(io.Writer) }

func (s silentStream) RoundTrip(r *http.Request) (*http.Response, error) {
	pr, pw := io.Pipe()
	context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
	go s.script(pw)
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: pr, Request: r}, nil
}

func TestEventsAndSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := &api.Client{BaseURL: "https://livepatch.example.com", HTTP: &http.Client{Transport: silentStream{func(w io.Writer) {
			_, _ = io.WriteString(w, ": hello\n\nevent: check\ndata: {}\n\n")
			for range 10 { // comments keep it alive
				time.Sleep(30 * time.Second)
				_, _ = io.WriteString(w, ": alive\n\n")
			}
			_, _ = io.WriteString(w, "event:check\n\n")
		}}}}
		var kinds []api.EventKind
		var last error
		for e, err := range c.Events(t.Context()) {
			if err != nil {
				last = err
				break
			}
			kinds = append(kinds, e.Kind)
		}
		if fmt.Sprint(kinds) != "[connected check check]" {
			t.Errorf("events are %v", kinds)
		}
		wantCode(t, last, livepatch.CodeUnavailable, "no more events")
		if d := time.Since(start); d < 5*time.Minute || d > 10*time.Minute {
			t.Errorf("the silence was noticed after %s", d)
		}
	})
}

func TestEventsStopWhenAsked(t *testing.T) {
	t.Parallel()
	c := &api.Client{BaseURL: "https://livepatch.example.com", HTTP: &http.Client{Transport: silentStream{func(w io.Writer) {
		for {
			if _, err := io.WriteString(w, "event: check\n\n"); err != nil {
				return
			}
		}
	}}}}
	n := 0
	for _, err := range c.Events(t.Context()) {
		must(t, err)
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d events after stopping at the third", n)
	}
}
