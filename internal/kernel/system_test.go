package kernel_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
)

// patch is a livepatch for the fake's kernel.
func patch(name string) kerneltest.Module {
	return kerneltest.Module{
		Name: name, VerMagic: kerneltest.Running().Release + " SMP preempt mod_unload modversions ",
		Livepatch: true,
		Objects:   []livepatch.Object{{Name: "vmlinux", Functions: []string{"cmdline_proc_show"}}},
	}
}

// file writes a module to disk.
func file(t *testing.T, m kerneltest.Module) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), m.Name+".ko")
	if err := os.WriteFile(path, m.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, s *kernel.System, m kerneltest.Module) {
	t.Helper()
	if err := s.Load(t.Context(), file(t, m)); err != nil {
		t.Fatalf("load %s: %v", m.Name, err)
	}
}

func loaded(t *testing.T, s *kernel.System) []string {
	t.Helper()
	patches, err := s.Loaded()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range patches {
		names = append(names, p.Name)
	}
	return names
}

func TestInspect(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	f, err := k.System().Inspect()
	if err != nil {
		t.Fatal(err)
	}
	if f.Kernel != kerneltest.Running() {
		t.Errorf("kernel = %+v, want %+v", f.Kernel, kerneltest.Running())
	}
	if f.MachineID != kerneltest.MachineID || f.CPUModel != "Fake CPU @ 2.00GHz" || f.BootID == "" {
		t.Errorf("identity not read: %+v", f)
	}
	if want := time.Date(2026, 6, 1, 8, 0, 0, 0, time.UTC); !f.BootTime.Equal(want) {
		t.Errorf("boot time = %v, want %v", f.BootTime, want)
	}
	if f.Uptime != 61250*time.Millisecond {
		t.Errorf("uptime = %v", f.Uptime)
	}
	if err := kernel.Refusal(f); err != nil {
		t.Errorf("a machine that can be livepatched is refused: %v", err)
	}
}

func TestInspectUbuntu(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	running := livepatch.Kernel{
		Release: "6.8.0-1047-aws", Version: "#50-Ubuntu SMP", Arch: "arm64",
		BuildID: "00112233445566778899aabbccddeeff00112233", Signature: "6.8.0-1047.50-aws",
	}
	k.Identify(running)
	f, err := k.System().Inspect()
	if err != nil || f.Kernel != running {
		t.Errorf("Inspect = %+v, %v; want %+v", f.Kernel, err, running)
	}
}

func TestInspectWithoutProc(t *testing.T) {
	t.Parallel()
	_, err := kernel.Open(t.TempDir(), nil).Inspect()
	if livepatch.CodeOf(err) != livepatch.CodeUnsupported {
		t.Errorf("an unreadable kernel gives %v, want an unsupported error", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(*kerneltest.Kernel)
		code    livepatch.Code
		says    string
	}{
		"no CONFIG_LIVEPATCH": {
			func(k *kerneltest.Kernel) { k.Unset("sys/kernel/livepatch") },
			livepatch.CodeUnsupported, "without livepatching",
		},
		"before the consistency model": {
			func(k *kerneltest.Kernel) { k.Unset("proc/self/patch_state") },
			livepatch.CodeUnsupported, "older than 4.12",
		},
		"modules disabled": {
			func(k *kerneltest.Kernel) { k.Set("proc/sys/kernel/modules_disabled", "1\n") },
			livepatch.CodeUnsupported, "kernel.modules_disabled is 1",
		},
		"not root": {
			func(k *kerneltest.Kernel) {
				k.Set("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n")
			},
			livepatch.CodeNotPrivileged, "does not run as root",
		},
		"root without the capability": {
			func(k *kerneltest.Kernel) {
				k.Set("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t000001fffffeffff\n")
			},
			livepatch.CodeNotPrivileged, "CAP_SYS_MODULE",
		},
		"no build id": {
			func(k *kerneltest.Kernel) {
				running := kerneltest.Running()
				running.BuildID = ""
				k.Identify(running)
			},
			livepatch.CodeUnsupported, "build id",
		},
		"systemd's container": {
			func(k *kerneltest.Kernel) { k.Set("run/systemd/container", "lxc\n") },
			livepatch.CodeUnsupported, "container (lxc)",
		},
		"container by environment": {
			func(k *kerneltest.Kernel) { k.Set("proc/1/environ", "A=b\x00container=podman\x00") },
			livepatch.CodeUnsupported, "container (podman)",
		},
		"docker": {
			func(k *kerneltest.Kernel) { k.Set(".dockerenv", "") },
			livepatch.CodeUnsupported, "Install livepatch on the host",
		},
		"no machine id": {
			func(k *kerneltest.Kernel) { k.Set("etc/machine-id", "") },
			livepatch.CodeUnsupported, "systemd-machine-id-setup",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kerneltest.New(t)
			tt.prepare(k)
			f, err := k.System().Inspect()
			if err != nil {
				t.Fatal(err)
			}
			err = kernel.Refusal(f)
			if livepatch.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("refusal = %v (%s), want %s saying %q", err, livepatch.CodeOf(err), tt.code, tt.says)
			}
		})
	}
}

func TestSignaturesAndHealthAreAdvice(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ file, content, requirement, remedy string }{
		"enforced":  {"sys/module/module/parameters/sig_enforce", "Y\n", "module signatures", "mokutil"},
		"locked":    {"sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "module signatures", "mokutil"},
		"oopsed":    {"proc/sys/kernel/tainted", "128\n", "kernel health", "journalctl"},
		"mips only": {"proc/sys/kernel/arch", "mips64\n", "architecture", "reversed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kerneltest.New(t)
			k.Set(tt.file, tt.content)
			f, err := k.System().Inspect()
			if err != nil {
				t.Fatal(err)
			}
			if err := kernel.Refusal(f); err != nil {
				t.Errorf("refused: %v", err)
			}
			for _, r := range kernel.Requirements(f) {
				if r.OK == (r.Name == tt.requirement) {
					t.Errorf("%s: OK = %v, found %q", r.Name, r.OK, r.Found)
				}
				if r.Name == tt.requirement && !strings.Contains(r.Remedy, tt.remedy) {
					t.Errorf("remedy %q does not mention %q", r.Remedy, tt.remedy)
				}
			}
		})
	}
}

func TestLoadShowsPatch(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	s := k.System()
	load(t, s, patch("lp_1"))
	if _, err := s.WaitTransition(t.Context(), "lp_1", time.Minute); err != nil {
		t.Fatal(err)
	}
	p, err := s.Patch("lp_1")
	if err != nil || !p.Enabled || p.Transition {
		t.Errorf("patch = %+v, %v; want it enabled", p, err)
	}
	if len(p.Objects) != 1 || p.Objects[0].Name != "vmlinux" || !slices.Equal(p.Objects[0].Functions, []string{"cmdline_proc_show"}) {
		t.Errorf("objects = %+v", p.Objects)
	}
	if !s.HasModule("lp_1") || s.HasModule("lp_2") {
		t.Error("HasModule is wrong about lp_1 or lp_2")
	}
}

func TestReplacedModuleIsLeftOverAndRemoved(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		load(t, s, patch("lp_1"))
		load(t, s, patch("lp_2"))
		if got := loaded(t, s); !slices.Equal(got, []string{"lp_2"}) {
			t.Errorf("loaded = %v, want lp_2 alone", got)
		}
		left, err := s.Leftovers()
		if err != nil || !slices.Equal(left, []string{"lp_1"}) {
			t.Fatalf("leftovers = %v, %v; want lp_1", left, err)
		}
		k.Busy("lp_1", 3) // the kernel frees it from a work queue
		if err := s.Remove(t.Context(), "lp_1"); err != nil {
			t.Fatal(err)
		}
		if s.HasModule("lp_1") {
			t.Error("lp_1 is still loaded")
		}
		if err := s.Remove(t.Context(), "lp_1"); err != nil {
			t.Errorf("removing it again: %v", err)
		}
	})
}

func TestStackedPatchesStay(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	s := k.System()
	second := patch("lp_2")
	second.Stacked = true
	load(t, s, patch("lp_1"))
	load(t, s, second)
	if got := loaded(t, s); !slices.Equal(got, []string{"lp_1", "lp_2"}) {
		t.Errorf("loaded = %v, want both", got)
	}
}

func TestRemoveGivesUpOnBusyModule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		load(t, s, patch("lp_1"))
		err := s.Remove(t.Context(), "lp_1") // it is enabled
		if livepatch.CodeOf(err) != livepatch.CodeConflict || !errors.Is(err, syscall.EAGAIN) {
			t.Errorf("Remove = %v, want a conflict", err)
		}
		if got := loaded(t, s); !slices.Equal(got, []string{"lp_1"}) {
			t.Errorf("loaded = %v, want lp_1 untouched", got)
		}
	})
}

func TestLoadErrorsSayWhy(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		prepare func(*kerneltest.Kernel)
		module  func(*kerneltest.Module)
		code    livepatch.Code
		says    string
	}{
		"unknown key":   {func(k *kerneltest.Kernel) { k.Refuse(syscall.EKEYREJECTED) }, nil, livepatch.CodeUntrustedKey, "mokutil"},
		"key not found": {func(k *kerneltest.Kernel) { k.Refuse(syscall.ENOKEY) }, nil, livepatch.CodeUntrustedKey, "mokutil"},
		"bad signature": {func(k *kerneltest.Kernel) { k.Refuse(syscall.EBADMSG) }, nil, livepatch.CodeUntrustedKey, "signature"},
		"lockdown": {func(k *kerneltest.Kernel) {
			k.Refuse(syscall.EPERM, "Lockdown: livepatchd: unsigned module loading is restricted")
		}, nil, livepatch.CodeUntrustedKey, "locked down"},
		"no capability":    {func(k *kerneltest.Kernel) { k.Refuse(syscall.EPERM) }, nil, livepatch.CodeNotPrivileged, "CAP_SYS_MODULE"},
		"blacklisted":      {func(k *kerneltest.Kernel) { k.Refuse(syscall.EPERM, "Module lp_1 is blacklisted") }, nil, livepatch.CodeRefused, "module_blacklist"},
		"malformed":        {func(k *kerneltest.Kernel) { k.Refuse(syscall.EINVAL, "livepatch: symbol 'tcp_ack' not found") }, nil, livepatch.CodeRefused, "symbol 'tcp_ack' not found"},
		"missing symbol":   {func(k *kerneltest.Kernel) { k.Refuse(syscall.ENOENT, "lp_1: Unknown symbol foo (err -2)") }, nil, livepatch.CodeRefused, "Unknown symbol foo"},
		"no memory":        {func(k *kerneltest.Kernel) { k.Refuse(syscall.ENOMEM) }, nil, livepatch.CodeRefused, "memory"},
		"other transition": {func(k *kerneltest.Kernel) { k.Refuse(syscall.EBUSY) }, nil, livepatch.CodeConflict, "in transition"},
		"signature enforced": {
			func(k *kerneltest.Kernel) { k.Set("sys/module/module/parameters/sig_enforce", "Y\n") }, nil,
			livepatch.CodeUntrustedKey, "Loading of unsigned module is rejected",
		},
		"modules disabled": {
			func(k *kerneltest.Kernel) { k.Set("proc/sys/kernel/modules_disabled", "1\n") }, nil,
			livepatch.CodeNotPrivileged, "modules_disabled",
		},
		"other kernel": {
			nil, func(m *kerneltest.Module) { m.VerMagic = "6.1.0-50-amd64 SMP" },
			livepatch.CodeWrongKernel, "version magic '6.1.0-50-amd64 SMP' should be",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kerneltest.New(t)
			k.Log("a line of before that must not be blamed")
			m := patch("lp_1")
			if tt.prepare != nil {
				tt.prepare(k)
			}
			if tt.module != nil {
				tt.module(&m)
			}
			err := k.System().Load(t.Context(), file(t, m))
			if livepatch.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("Load = %v (%s), want %s saying %q", err, livepatch.CodeOf(err), tt.code, tt.says)
			}
			if strings.Contains(err.Error(), "of before") {
				t.Errorf("the error blames an old log line: %v", err)
			}
			if got := loaded(t, k.System()); len(got) != 0 {
				t.Errorf("loaded = %v after a refusal", got)
			}
		})
	}
}

func TestLoadTwice(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	s := k.System()
	load(t, s, patch("lp_1"))
	err := s.Load(t.Context(), file(t, patch("lp_1")))
	if livepatch.CodeOf(err) != livepatch.CodeConflict || !strings.Contains(err.Error(), "loaded already") {
		t.Errorf("second load = %v, want a conflict", err)
	}
}

func TestLoadAfterCancelTouchesNothing(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := k.System().Load(ctx, file(t, patch("lp_1"))); !errors.Is(err, context.Canceled) {
		t.Errorf("Load = %v, want canceled", err)
	}
	if calls := k.Calls(); len(calls) != 0 {
		t.Errorf("the kernel was called: %v", calls)
	}
}
