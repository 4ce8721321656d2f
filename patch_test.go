package livepatch_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livepatch"
)

func TestVersionText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := livepatch.Version{Major: rapid.Uint32().Draw(t, "major"), Minor: rapid.Uint32().Draw(t, "minor")}
		got, err := livepatch.ParseVersion(v.String())
		if err != nil || got != v {
			t.Fatalf("%v reads back as %v, %v", v, got, err)
		}
	})
	for _, bad := range []string{"1", "1.", ".1", "01.1", "1.+1", "1.1.1", "-1.0", "4294967296.0", " 1.1"} {
		if v, err := livepatch.ParseVersion(bad); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", bad, v)
		}
	}
}

func TestVersionOrder(t *testing.T) {
	order := []livepatch.Version{{}, {Minor: 1}, {Major: 1}, {Major: 1, Minor: 9}, {Major: 1, Minor: 10}, {Major: 10}}
	for i, a := range order {
		for j, b := range order {
			if got := a.Compare(b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%q.Compare(%q) = %d", a, b, got)
			}
		}
	}
}

func TestKernelNames(t *testing.T) {
	for _, tt := range []struct{ release, series, flavour string }{
		{"6.1.0-47-cloud-amd64", "6.1", "cloud-amd64"},
		{"6.1.0-47-rt-amd64", "6.1", "rt-amd64"},
		{"6.8.0-60-generic", "6.8", "generic"},
		{"6.18.44", "6.18", ""},
		{"linux", "", ""},
	} {
		k := livepatch.Kernel{Release: tt.release}
		if k.Series() != tt.series || k.Flavour() != tt.flavour {
			t.Errorf("%s: series %q, flavour %q; want %q, %q", tt.release, k.Series(), k.Flavour(), tt.series, tt.flavour)
		}
	}
}

func TestTargetIsSafeInPaths(t *testing.T) {
	for _, bad := range []string{"", "../x", "6.1/../..", "6.1\n", "6 1", "-6.1", "6." + strings.Repeat("1", 64)} {
		if err := (livepatch.KernelTarget{Release: bad, Arch: "amd64"}).Validate(); err == nil {
			t.Errorf("release %q passes", bad)
		}
	}
	if err := (livepatch.KernelTarget{Release: "6.1.0", Arch: "../x"}).Validate(); err == nil {
		t.Error("architecture ../x passes")
	}
}

func TestParseFix(t *testing.T) {
	got, err := livepatch.ParseFix("cve-2026-46050:High")
	if want := (livepatch.Fix{CVE: "CVE-2026-46050", Priority: "high"}); err != nil || got != want {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"CVE-2026-46050", "CVE-26-1:high", "CVE-2026-46050:urgent", ""} {
		if _, err := livepatch.ParseFix(bad); livepatch.CodeOf(err) != livepatch.CodeInvalid {
			t.Errorf("ParseFix(%q): %v", bad, err)
		}
	}
}

// valid returns a catalogue with two versions that passes.
func valid() *livepatch.Catalogue {
	digest := strings.Repeat("ab", 32)
	patch := func(major uint32, module string) livepatch.Livepatch {
		return livepatch.Livepatch{
			Version:  livepatch.Version{Major: major, Minor: 1},
			BuildIDs: []string{strings.Repeat("0a", 20)},
			Module: livepatch.Module{Name: module, VerMagic: "6.1.0-47-cloud-amd64 SMP preempt", Replace: true,
				Size: 4096, SHA256: digest},
			Archive: livepatch.Blob{SHA256: digest, Size: 1024},
			Fixes:   []livepatch.Fix{{CVE: "CVE-2026-46050", Priority: "high"}},
		}
	}
	return &livepatch.Catalogue{
		Kernel:  livepatch.KernelTarget{Release: "6.1.0-47-cloud-amd64", Arch: "amd64"},
		Patches: []livepatch.Livepatch{patch(1, "lp_1"), patch(2, "lp_2")},
	}
}

func TestCatalogueValidate(t *testing.T) {
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*livepatch.Catalogue)
		code   livepatch.Code
		says   string
	}{
		"version falls back": {func(c *livepatch.Catalogue) { c.Patches[1].Version.Major = 1 }, "invalid", "versions only grow"},
		"same module name":   {func(c *livepatch.Catalogue) { c.Patches[1].Module.Name = "lp_1" }, "invalid", "give each version its own"},
		"other kernel":       {func(c *livepatch.Catalogue) { c.Patches[0].Module.VerMagic = "6.1.0-48-cloud-amd64 SMP" }, "wrong-kernel", "6.1.0-48-cloud-amd64"},
		"no build id":        {func(c *livepatch.Catalogue) { c.Patches[0].BuildIDs = nil }, "invalid", "build id"},
		"huge module":        {func(c *livepatch.Catalogue) { c.Patches[0].Module.Size = livepatch.MaxModuleSize + 1 }, "invalid", "bytes"},
		"bad day":            {func(c *livepatch.Catalogue) { c.CoveredUntil = "soon" }, "invalid", "2027-03-19"},
	} {
		c := valid()
		tt.change(c)
		err := c.Validate()
		if livepatch.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %q (%s), want %s that says %q", name, err, livepatch.CodeOf(err), tt.code, tt.says)
		}
	}
}

func TestCatalogueLatest(t *testing.T) {
	k := livepatch.Kernel{Release: "6.1.0-47-cloud-amd64", Arch: "amd64", BuildID: strings.Repeat("0a", 20)}
	c := valid()
	if got := c.Latest(k); got == nil || got.Version.Major != 2 {
		t.Errorf("latest is %v, want version 2.1", got)
	}
	c.Patches[1].Withdrawn = &livepatch.Withdrawal{At: time.Unix(0, 0), Reason: "test"}
	if got := c.Latest(k); got == nil || got.Version.Major != 1 {
		t.Errorf("with 2.1 withdrawn the latest is %v, want 1.1", got)
	}
	k.BuildID = strings.Repeat("0b", 20)
	if got := c.Latest(k); got != nil {
		t.Errorf("a kernel with the same release and another build id is offered %v", got.Version)
	}
	k.BuildID = ""
	if got := c.Latest(k); got != nil {
		t.Errorf("a kernel without a build id is offered %v", got.Version)
	}
}

// FuzzCatalogue: whatever reads as a valid catalogue reads the same after it was
// written again.
func FuzzCatalogue(f *testing.F) {
	seed, err := json.Marshal(valid())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var c, again livepatch.Catalogue
		if json.Unmarshal(data, &c) != nil || c.Validate() != nil {
			return
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatal(err)
		}
		if err := again.Validate(); err != nil {
			t.Fatalf("valid before it was written, not after: %v", err)
		}
	})
}
