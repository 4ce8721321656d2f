package builder_test

import (
	"os"
	"path/filepath"
	"testing"

	"livepatch/internal/builder"
)

const benchRelease = "6.1.0-47-cloud-amd64"

// buildICMP builds a module for one function of net/ipv4/icmp.c. It needs the
// distribution's packages, from the cache or from the network.
func buildICMP(b *testing.B, cache string) {
	b.Helper()
	diff, err := os.ReadFile("testdata/icmp.patch")
	if err != nil {
		b.Fatal(err)
	}
	bd := &builder.Builder{Cache: cache}
	_, report, err := bd.Build(b.Context(), builder.Request{Release: benchRelease, Diffs: [][]byte{diff}, Name: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	if len(report.Functions) != 1 || report.Functions[0].Name != "icmp_glue_bits" {
		b.Fatalf("built functions %+v", report.Functions)
	}
}

// BenchmarkBuildWarm is a build from prepared sources; the goal is under 15 s on two
// cores.
func BenchmarkBuildWarm(b *testing.B) {
	cache := os.Getenv("LIVEPATCH_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			b.Fatal(err)
		}
		cache = filepath.Join(dir, "livepatch")
	}
	buildICMP(b, cache)
	for b.Loop() {
		buildICMP(b, cache)
	}
}

// BenchmarkBuildCold is a build from nothing, download of the packages included; the
// goal is under 120 s on two cores.
func BenchmarkBuildCold(b *testing.B) {
	for b.Loop() {
		buildICMP(b, b.TempDir())
	}
}
