package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"livepatch/internal/kernel/kerneltest"
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
