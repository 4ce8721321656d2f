package store_test

import (
	"testing"

	"livepatch"
	"livepatch/internal/store"
)

// BenchmarkQuietCheckIn is a check-in that changes nothing, of a kernel with
// twenty livepatches of a hundred fixes each.
func BenchmarkQuietCheckIn(b *testing.B) {
	f := open(b)
	cat := livepatch.Catalogue{Kernel: kernel.Target()}
	for major := range uint32(20) {
		p := patch(major + 1)
		for range 100 {
			p.Fixes = append(p.Fixes, p.Fixes[0])
		}
		cat.Patches = append(cat.Patches, p)
	}
	p := store.PendingPublication{ID: "p1", Actor: "operator ann"}
	_, err := f.BeginPublication(b.Context(), p)
	must(b, err)
	must(b, f.CompletePublication(b.Context(), p, []livepatch.Catalogue{cat}))
	id := f.enrol(b, 1)
	_, err = f.CheckIn(b.Context(), id, checkIn("b1"), stay)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		_, err := f.CheckIn(b.Context(), id, checkIn("b1"), stay)
		must(b, err)
	}
}
