package localapi_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"livepatch"
	"livepatch/internal/localapi"
)

var update = flag.Bool("update", false, "write the golden files")

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// age stands for cli.Age, which this package may not import.
func age(at, now time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return strconv.Itoa(int(now.Sub(at)/time.Second)) + " seconds ago"
}

func patched() localapi.Status {
	fixes := []localapi.Fix{
		{Name: "cve-2023-31436", Patched: true, Description: "Gwangun Jung discovered that the Quick Fair Queueing scheduler contained an out-of-bounds write vulnerability. A local attacker could use this."},
		{Name: "cve-2023-34319", Bug: "1509563", Patched: true},
		{Name: "cve-2023-3611"},
	}
	return localapi.Status{
		ClientVersion: "7.23", MachineID: strings.Repeat("0", 32), Architecture: "amd64", CPUModel: "QEMU: Virtual CPU #2",
		LastCheck: noon.Add(-52 * time.Second), BootTime: noon.Add(-20 * time.Hour), Uptime: "69596",
		Status: []localapi.KernelStatus{{
			Kernel: "6.1.0-47-cloud-amd64", Running: true, Supported: livepatch.SupportedYes, UpgradeRequiredDate: "2027-11-23",
			Livepatch: localapi.PatchStatus{CheckState: livepatch.Checked, State: livepatch.StateApplied, Version: livepatch.Version{Major: 102, Minor: 1}, Fixes: fixes},
		}},
		Tier: livepatch.TierGeneral, ServerCheckIn: "succeeded", Trusted: "tls",
		Outstanding: []localapi.Fix{{Name: "cve-2026-9"}},
		Problems:    []localapi.Problem{{Code: livepatch.CodeSuspect, Message: "livepatch 103.1 is held back:\nthe machine went down", Since: noon.Add(-time.Hour)}},
	}
}

// with returns the patched status with its kernel changed.
func with(change func(*localapi.KernelStatus)) localapi.Status {
	s := patched()
	change(&s.Status[0])
	return s
}

func unpatched() localapi.Status {
	s := with(func(k *localapi.KernelStatus) {
		k.Livepatch = localapi.PatchStatus{CheckState: livepatch.Checked, State: livepatch.StateNothingToApply}
	})
	s.Outstanding, s.Problems, s.Trusted = nil, nil, "package"
	return s
}

func fresh() localapi.Status {
	return localapi.Status{MachineID: strings.Repeat("1", 32), Uptime: "46"}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]localapi.Status{"patched": patched(), "unpatched": unpatched(), "fresh": fresh()} {
		document, err := localapi.YAML(s)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".yaml", string(document))
		golden(t, name+".humane", localapi.Humane(s, noon, age, false))
		golden(t, name+".verbose", localapi.Humane(s, noon, age, true))
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test -update writes it.\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

// TestYAMLTypes reads the document as other programs do: times are times, the
// version is a string although it looks like a number, and so is the date.
func TestYAMLTypes(t *testing.T) {
	t.Parallel()
	document, err := localapi.YAML(patched())
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		ClientVersion any `yaml:"client-version"`
		LastCheck     any `yaml:"last-check"`
		BootTime      any `yaml:"boot-time"`
		Uptime        any `yaml:"uptime"`
		Status        []struct {
			Running             any            `yaml:"running"`
			UpgradeRequiredDate any            `yaml:"upgradeRequiredDate"`
			Livepatch           map[string]any `yaml:"livepatch"`
		} `yaml:"status"`
	}
	if err := yaml.Unmarshal(document, &got); err != nil {
		t.Fatal(err)
	}
	if at, ok := got.LastCheck.(time.Time); !ok || !at.Equal(noon.Add(-52*time.Second)) {
		t.Errorf("last-check is %T %v", got.LastCheck, got.LastCheck)
	}
	if _, ok := got.BootTime.(time.Time); !ok {
		t.Errorf("boot-time is %T", got.BootTime)
	}
	k := got.Status[0]
	if got.ClientVersion != "7.23" || got.Uptime != "19h19m56s" || k.Running != true || k.UpgradeRequiredDate != "2027-11-23" || k.Livepatch["version"] != "102.1" {
		t.Errorf("read back as %+v", got)
	}
	if want := "* CVE-2023-31436\n* CVE-2023-34319 LP: #1509563\n* CVE-2023-3611 (unpatched)"; k.Livepatch["fixes"] != want {
		t.Errorf("fixes are %q, want %q", k.Livepatch["fixes"], want)
	}
}

// TestYAMLAwk extracts values as a monitor does that knows no YAML.
func TestYAMLAwk(t *testing.T) {
	t.Parallel()
	document, err := localapi.YAML(patched())
	if err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]string{
		"checkState": "checked", "patchState": "applied", " version:": `"102.1"`, " running": "true", "kernel": "6.1.0-47-cloud-amd64",
	} {
		var found []string
		for line := range strings.Lines(string(document)) {
			if strings.Contains(line, pattern) {
				_, value, _ := strings.Cut(line, ": ")
				found = append(found, strings.TrimSpace(value))
			}
		}
		if len(found) != 1 || found[0] != want {
			t.Errorf("lines with %q have %q, want one with %q", pattern, found, want)
		}
	}
}

// TestYAMLAnyText gives the daemon's strings any content: what is read back is
// what was written.
func TestYAMLAnyText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := patched()
		s.CPUModel = rapid.StringMatching(`[ -~äß✓\n"':#-]{0,40}`).Draw(t, "cpu")
		document, err := localapi.YAML(s)
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]any
		if err := yaml.Unmarshal(document, &back); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if back["cpu-model"] != s.CPUModel {
			t.Fatalf("cpu-model %q came back as %q", s.CPUModel, back["cpu-model"])
		}
	})
}

// TestHumaneLines holds for every state: each line is "key: value", no key comes
// twice, and a second later only "last check" differs.
func TestHumaneLines(t *testing.T) {
	t.Parallel()
	states := []livepatch.PatchState{
		livepatch.StateUnapplied, livepatch.StateApplying, livepatch.StateApplied, livepatch.StateAppliedWithBug,
		livepatch.StateApplyFailed, livepatch.StateNothingToApply, livepatch.StateUnknown, livepatch.StateKernelUpgradeRequired, "",
	}
	supports := []livepatch.Supported{
		livepatch.SupportedYes, livepatch.SupportedNo, livepatch.SupportedEndOfLife, livepatch.SupportedUpgrade, livepatch.SupportedUnknown, "",
	}
	said := map[string]livepatch.PatchState{}
	for _, state := range states {
		for _, support := range supports {
			s := with(func(k *localapi.KernelStatus) { k.Livepatch.State, k.Supported = state, support })
			s.ServerCheckIn = "failed: livepatch check failed:\nthe server is down"
			text := localapi.Humane(s, noon, age, false)
			values := keys(t, text)
			if other, twice := said[values["patch state"]]; twice && other != state && other != "" && state != "" && state != livepatch.StateUnknown {
				t.Errorf("states %q and %q are told alike: %s", other, state, values["patch state"])
			}
			said[values["patch state"]] = state
			later := keys(t, localapi.Humane(s, noon.Add(time.Second), age, false))
			for k, v := range values {
				if k != "last check" && later[k] != v {
					t.Errorf("%s moved within a second from %q to %q", k, v, later[k])
				}
			}
		}
	}
}

func keys(t *testing.T, text string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if _, twice := values[key]; !ok || twice {
			t.Errorf("line %q has no key, or one that was there before", line)
		}
		values[key] = value
	}
	return values
}

func TestKernelState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		support livepatch.Supported
		date    string
		want    string
	}{
		{livepatch.SupportedYes, "", "✓ kernel series 6.1 is covered by Livepatch"},
		{livepatch.SupportedYes, "2027-11-23", "✓ kernel series 6.1 is covered by Livepatch"},
		{livepatch.SupportedYes, "2026-12-01", "✓ kernel 6.1.0-47-cloud-amd64 is covered by Livepatch until 2026-12-01, please install available kernel updates and reboot before then"},
		{livepatch.SupportedNo, "", "✗ kernel is not covered by Livepatch"},
		{livepatch.SupportedEndOfLife, "", "✗ kernel is no longer covered by Livepatch"},
		{livepatch.SupportedUpgrade, "", "✗ Livepatch coverage has ended; please upgrade the kernel and reboot"},
		{livepatch.SupportedUpgrade, "2026-10-01", "✗ Livepatch coverage ended 2026-10-01; please upgrade the kernel and reboot"},
		{livepatch.SupportedUnknown, "", "✗ unable to determine kernel support status; please contact the operator of your Livepatch server"},
	} {
		s := with(func(k *localapi.KernelStatus) { k.Supported, k.UpgradeRequiredDate = c.support, c.date })
		if got := keys(t, localapi.Humane(s, noon, age, false))["kernel state"]; got != c.want {
			t.Errorf("%s until %q: %q, want %q", c.support, c.date, got, c.want)
		}
	}
}

func TestManyFixesStayOnOneLine(t *testing.T) {
	t.Parallel()
	s := with(func(k *localapi.KernelStatus) {
		k.Livepatch.Fixes = nil
		for i := range 38 {
			k.Livepatch.Fixes = append(k.Livepatch.Fixes, localapi.Fix{Name: "cve-2026-" + strconv.Itoa(1000+i), Patched: true})
		}
	})
	want := "38 (CVE-2026-1000, CVE-2026-1001, CVE-2026-1002, CVE-2026-1003, CVE-2026-1004, CVE-2026-1005, 32 more)"
	if got := keys(t, localapi.Humane(s, noon, age, false))["fixed"]; got != want {
		t.Errorf("fixed: %q, want %q", got, want)
	}
}

// TestJSONKeys: the keys' spelling and order are what the readers of the Canonical
// client's output rely on; with nothing to apply there is no key Fixes.
func TestJSONKeys(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(unpatched().Complete())
	if err != nil {
		t.Fatal(err)
	}
	at := -1
	for _, key := range []string{
		"Client-Version", "Machine-Id", "Architecture", "CPU-Model", "Last-Check", "Boot-Time", "Uptime", "Status", "Kernel", "Running",
		"Livepatch", "CheckState", "State", "Version", "Supported", "UpgradeRequiredDate", "tier", "Server-Check-In", "Trusted", "Outstanding", "Problems",
	} {
		next := strings.Index(string(b), `"`+key+`":`)
		if next <= at {
			t.Errorf("key %s is missing or out of order in %s", key, b)
		}
		at = next
	}
	for _, want := range []string{`"Version":""`, `"Uptime":"69596"`, `"Outstanding":[]`, `"Problems":[]`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %s", b, want)
		}
	}
	if strings.Contains(string(b), "Fixes") {
		t.Errorf("%s has Fixes", b)
	}
}

func TestUpgradeRequired(t *testing.T) {
	t.Parallel()
	if got := localapi.UpgradeRequired(patched()); got != "" {
		t.Errorf("a patched machine is told %q", got)
	}
	if got := localapi.UpgradeRequired(fresh()); got != "" {
		t.Errorf("a machine that knows nothing is told %q", got)
	}
	dead := with(func(k *localapi.KernelStatus) { k.Livepatch.State = livepatch.StateKernelUpgradeRequired })
	ended := with(func(k *localapi.KernelStatus) { k.Supported = livepatch.SupportedUpgrade })
	for _, s := range []localapi.Status{dead, ended} {
		if got := localapi.UpgradeRequired(s); !strings.Contains(got, "6.1.0-47-cloud-amd64") || !strings.Contains(got, "reboot") {
			t.Errorf("told %q", got)
		}
	}
}
