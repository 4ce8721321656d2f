package server

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"livepatch"
	"livepatch/internal/api"
)

var placeholderRE = regexp.MustCompile(`\{[^}]*\}`)

// TestEveryRouteHoldsItsRight calls each row of the table as nobody, as a machine
// and as an operator, from another host and from this one.
func TestEveryRouteHoldsItsRight(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	f.hub.close() // an event stream ends at once
	handler := f.Handler()
	denied := func(r route, credential, from string) bool {
		t.Helper()
		method, path, _ := strings.Cut(r.pattern, " ")
		path = strings.TrimSuffix(path, "{$}")
		req := httptest.NewRequest(method, placeholderRE.ReplaceAllString(path, "1.1"), strings.NewReader("{}"))
		req.RemoteAddr = from
		if credential != "" {
			req.Header.Set("Authorization", "Bearer "+credential)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		var p api.Problem
		if w.Code >= 400 {
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Code == "" || p.Detail == "" || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s: failure %d is not a problem document: %s", r.pattern, w.Code, w.Body)
			}
		}
		return p.Code == livepatch.CodeUnauthorized
	}
	const there, here = "192.0.2.1:4711", "127.0.0.1:4711"
	for _, r := range f.routes() {
		machine, _ := f.enrol(t, 1) // anew for each row: one of them removes it
		nobody, asMachine := denied(r, "", there), denied(r, machine.Credential, there)
		asOperator, fromHere := denied(r, operatorCredential, there), denied(r, "", here)
		wrong := denied(r, "wrong", there)
		got := [5]bool{nobody, asMachine, asOperator, fromHere, wrong}
		want, ok := map[right][5]bool{
			everybody: {false, false, false, false, false},
			machines:  {true, false, true, true, true},
			operators: {true, true, false, true, true},
			local:     {true, true, false, false, true},
		}[r.right]
		if !ok {
			t.Errorf("%s has no right", r.pattern)
		}
		if got != want {
			t.Errorf("%s (%s) denies nobody, machine, operator, local, wrong: %v, want %v", r.pattern, r.right, got, want)
		}
	}
}

func TestUnknownRouteIsAProblem(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	resp, err := f.operator.HTTP.Get(f.http.URL + "/v2/nothing")
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusNotFound || resp.ProtoMajor != 2 || !strings.Contains(string(b), `"not-found"`) {
		t.Errorf("answer is %s %s: %s", resp.Proto, resp.Status, b)
	}
}

func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	f := newServer(t, nil)
	_, err := f.operator.CreateAccount(t.Context(), api.NewAccount{Name: strings.Repeat("x", 20<<10)})
	wantCode(t, err, livepatch.CodeInvalid, "16384 bytes")
}
