package server

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
)

func TestSupported(t *testing.T) {
	t.Parallel()
	noon := time.Date(2027, 3, 19, 12, 0, 0, 0, time.UTC)
	made := livepatch.Livepatch{Version: livepatch.Version{Major: 1}, BuildIDs: []string{kernel.BuildID}, Module: livepatch.Module{VerMagic: kernel.Release + " SMP"}}
	other := made
	other.BuildIDs = []string{strings.Repeat("0b", 20)}
	for _, tt := range []struct {
		name string
		c    *livepatch.Catalogue
		want livepatch.Supported
	}{
		{"no catalogue", nil, livepatch.SupportedNo},
		{"covered, nothing published yet", &livepatch.Catalogue{}, livepatch.SupportedYes},
		{"a patch for it", &livepatch.Catalogue{Patches: []livepatch.Livepatch{made}}, livepatch.SupportedYes},
		{"patches for another binary only", &livepatch.Catalogue{Patches: []livepatch.Livepatch{other}}, livepatch.SupportedNo},
		{"the last day", &livepatch.Catalogue{CoveredUntil: "2027-03-19"}, livepatch.SupportedYes},
		{"the day after", &livepatch.Catalogue{CoveredUntil: "2027-03-18", Patches: []livepatch.Livepatch{made}}, livepatch.SupportedUpgrade},
		{"something needs a reboot", &livepatch.Catalogue{Unpatchable: []livepatch.Unpatchable{{}}}, livepatch.SupportedYes},
	} {
		if got := supported(tt.c, kernel, noon); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestNobodyIsLocalBehindAProxy(t *testing.T) {
	t.Parallel()
	f := newServer(t, func(o *Options) { o.BehindProxy, o.EnrolPerMinute = true, 1 })
	ask := func(method, path, from string) int {
		r := httptest.NewRequest(method, path, strings.NewReader("{}"))
		r.RemoteAddr = "127.0.0.1:4711"
		r.Header.Set("X-Forwarded-For", from)
		w := httptest.NewRecorder()
		f.Handler().ServeHTTP(w, r)
		return w.Code
	}
	if code := ask("GET", "/metrics", "192.0.2.1"); code != 401 {
		t.Errorf("metrics for somebody behind the proxy: %d, want 401", code)
	}
	for i, want := range []int{400, 429} {
		if code := ask("POST", "/v1/machines", "198.51.100.9, 192.0.2.1"); code != want {
			t.Errorf("attempt %d of one address: %d, want %d", i+1, code, want)
		}
	}
	if code := ask("POST", "/v1/machines", "192.0.2.1, 192.0.2.2"); code != 400 {
		t.Errorf("another address shares the limit: %d", code)
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]string{
		"192.0.2.1:99":          "192.0.2.1",
		"192.0.2.1":             "192.0.2.1",
		"[2001:db8:1:2:3::4]:9": "2001:db8:1:2::/64",
		"2001:db8:1:2::5":       "2001:db8:1:2::/64",
		"[fe80::1%eth0]:9":      "fe80::/64",
	} {
		if got := network(from); got != want {
			t.Errorf("network of %s is %s, want %s", from, got, want)
		}
	}
}

func TestOutstandingIsWhatIsKnownAndNotInForce(t *testing.T) {
	t.Parallel()
	patch := func(major uint32, cves ...string) livepatch.Livepatch {
		p := livepatch.Livepatch{Version: livepatch.Version{Major: major, Minor: 1}, BuildIDs: []string{kernel.BuildID},
			Module: livepatch.Module{VerMagic: kernel.Release + " SMP"}}
		for _, cve := range cves {
			p.Fixes = append(p.Fixes, livepatch.Fix{CVE: cve, Priority: livepatch.PriorityHigh})
		}
		return p
	}
	c := &livepatch.Catalogue{Patches: []livepatch.Livepatch{patch(1, "CVE-2026-1001"), patch(2, "CVE-2026-1001", "CVE-2026-1002")}}
	for _, tt := range []struct {
		name     string
		withdraw bool
		running  uint32
		want     string
	}{
		{"nothing runs", false, 0, "CVE-2026-1001 CVE-2026-1002"},
		{"the older runs", false, 1, "CVE-2026-1002"},
		{"the newest runs", false, 2, ""},
		{"the newest was withdrawn, the older runs", true, 1, "CVE-2026-1002"},
	} {
		if tt.withdraw {
			c.Patches[1].Withdrawn = &livepatch.Withdrawal{Reason: "test"}
		}
		m := api.Machine{Kernel: kernel}
		if tt.running > 0 {
			m.Version = livepatch.Version{Major: tt.running, Minor: 1}
		}
		var got []string
		for _, f := range outstanding(c, m) {
			got = append(got, f.CVE)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: outstanding %v, want %s", tt.name, got, tt.want)
		}
	}
}
