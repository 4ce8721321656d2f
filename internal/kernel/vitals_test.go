package kernel_test

import (
	"testing"

	"livepatch"
	"livepatch/internal/kernel/kerneltest"
)

func TestVitals(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	k.Unset("proc/meminfo")
	k.Unset("proc/loadavg")
	if v := k.System().Vitals(); v != nil {
		t.Errorf("without the files: %+v", v)
	}
	k.Set("proc/meminfo", "MemTotal:        2048 kB\nMemFree:           10 kB\nMemAvailable:    1024 kB\nSUnreclaim:        64 kB\nHugePages_Total:       0\nMemTotal: -1 kB\n")
	k.Set("proc/loadavg", "0.25 0.10 0.05 1/99 1234\n")
	want := livepatch.Vitals{MemTotal: 2 << 20, MemAvailable: 1 << 20, KernelMemory: 64 << 10, Load1: 0.25}
	if v := k.System().Vitals(); v == nil || *v != want {
		t.Errorf("got %+v, want %+v", v, want)
	}
	k.Set("proc/loadavg", "?\n")
	if v := k.System().Vitals(); v == nil || v.Load1 != 0 || v.MemTotal != 2<<20 {
		t.Errorf("with a strange load: %+v", v)
	}
}
