package agent

import (
	"encoding/json"
	"testing"
	"time"

	"livepatch/internal/localapi"
)

// BenchmarkStatus is what one `livepatch status` costs the daemon. Budget: 20 ms
// for the whole command.
func BenchmarkStatus(bm *testing.B) {
	b := newBench(bm)
	b.enable()
	b.publish(1)
	b.refresh()
	for bm.Loop() {
		s, err := b.a.statusNow(time.Now())
		b.ok(err)
		if _, err := json.Marshal(s); err != nil {
			bm.Fatal(err)
		}
	}
}

// BenchmarkVerifyToLoad is from a module on disk to finit_module and back: read,
// hash, parse, journal, load, transition, remember. Budget: 100 ms for 1 MB.
func BenchmarkVerifyToLoad(bm *testing.B) {
	b := newBench(bm)
	b.enable()
	p := b.publishFile(1, append(b.module(1), make([]byte, 1<<20)...))
	b.refresh()
	b.ok(b.a.lock(bm.Context()))
	defer b.a.unlock()
	for bm.Loop() {
		bm.StopTimer()
		b.kern.Reboot()
		b.ok(b.a.inspect())
		bm.StartTimer()
		b.ok(b.a.apply(bm.Context(), attempt{patch: &p}))
	}
}

// BenchmarkIdleCheck is a check that finds nothing new; B/check counts bodies, both
// ways. Budget: 2 KB on the wire.
func BenchmarkIdleCheck(bm *testing.B) {
	b := newBench(bm)
	b.enable()
	b.publish(1)
	b.refresh()
	before := b.srv.bytes.Load()
	for bm.Loop() {
		_, err := b.a.refresh(bm.Context(), localapi.RefreshRequest{})
		b.ok(err)
	}
	bm.ReportMetric(float64(b.srv.bytes.Load()-before)/float64(bm.N), "B/check")
}
