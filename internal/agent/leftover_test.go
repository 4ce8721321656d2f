package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
)

// disableByHand does echo 0 > enabled; the module stays in the kernel.
func (b *bench) disableByHand(module string) {
	b.Helper()
	b.ok(b.kern.SetEnabled(filepath.Join(b.kern.Root, "sys/kernel/livepatch", module, "enabled"), false))
}

// TestDisabledModuleDoesNotBlockItsVersion: a module of ours that patches nothing
// any more is removed, so that the same version can be loaded again without a
// reboot.
func TestDisabledModuleDoesNotBlockItsVersion(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"while it runs": false, "and the daemon is started again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			b.refresh()
			b.disableByHand(moduleName(1))
			if restart {
				b.boot()
			}
			b.srv.offer(version(1))
			b.refresh()
			b.wantRunning(moduleName(1))
			if p := b.status().Problems; len(p) != 0 {
				t.Errorf("problems %v", p)
			}
		})
	}
}

// TestForeignModulesAreLeftAlone: somebody else's disabled livepatch is theirs.
func TestForeignModulesAreLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	foreign := filepath.Join(t.TempDir(), "kpatch.ko")
	b.ok(os.WriteFile(foreign, kerneltest.Module{Name: "kpatch_x", VerMagic: kerneltest.Running().Release + " SMP", Livepatch: true, Stacked: true}.Bytes(), 0o600))
	b.ok(b.kern.System().Load(t.Context(), foreign))
	b.disableByHand("kpatch_x")
	b.publish(1)
	b.refresh()
	b.boot()
	b.wantRunning(moduleName(1))
	if slices.Contains(b.kern.Calls(), "unload kpatch_x") {
		t.Error("it was removed")
	}
}

// TestLateReverseIsWatched: taking a stuck patch back takes too long and ends later.
// Then the module is removed, what ran before is guarded again, and a version can be
// loaded, without a reboot and also when the daemon was started again.
func TestLateReverseIsWatched(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"the daemon runs on": false, "the daemon is started again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.enable()
				b.publish(1)
				b.refresh()
				b.soak()
				b.publish(2)
				holder := kernel.Task{PID: 412, TID: 412, Comm: "backupd"}
				b.kern.HoldApply(holder)
				b.kern.HoldRemove(holder)
				b.refresh()
				b.wantProblem(livepatch.CodeStuck, "taking it back did not work either")
				if restart {
					began := time.Now()
					b.boot()
					if took := time.Since(began); took > time.Second {
						t.Errorf("the start waited %s for it", took)
					}
				}
				b.a.turnOnce(t.Context(), false)
				if b.a.journal == nil || b.a.journal.Version != version(2) {
					t.Fatalf("the journal says %+v while 2.1 is in the kernel", b.a.journal)
				}
				b.publish(3)
				b.refresh()
				b.wantLoads(moduleName(1), moduleName(2))
				b.wantProblem(livepatch.CodeConflict, "livepatch 2.1 is still being taken back")
				if got := b.a.untilNext(t.Context()); got > time.Minute {
					t.Errorf("the next look is in %s", got)
				}
				b.kern.HoldApply()
				b.kern.HoldRemove()
				b.a.turnOnce(t.Context(), false)
				if b.kern.System().HasModule(moduleName(2)) {
					t.Error("the module is still loaded")
				}
				b.wantRunning(moduleName(1))
				if j := b.a.journal; j == nil || j.Version != version(1) || j.Phase != phaseHealthy {
					t.Errorf("the journal says %+v, want 1.1 to be healthy", j)
				}
				b.srv.offer(version(3))
				_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{})
				b.ok(err)
				b.wantRunning(moduleName(3))
				if p := b.status().Problems; len(p) != 0 {
					t.Errorf("problems %v", p)
				}
			})
		})
	}
}
