package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"livepatch"
)

// Facts is what a kernel says of itself and of what surrounds it.
type Facts struct {
	Kernel livepatch.Kernel
	// Livepatch tells that the kernel has CONFIG_LIVEPATCH with the consistency
	// model (Linux 4.12 and later).
	Livepatch bool
	// BootID is new at each boot, a UUID (random(4)).
	BootID   string
	BootTime time.Time
	// Uptime includes time asleep, in hundredths of a second (proc_uptime(5)).
	Uptime time.Duration
	// CPUModel is free text; empty where /proc/cpuinfo has none.
	CPUModel string
	// Hardware is the system's vendor and model, "Dell Inc. PowerEdge R650"; Virt
	// the hypervisor, "kvm", "vmware", "xen", "hyperv", "qemu", "none" and others.
	// Both at most MaxHardware bytes, and empty when not known.
	Hardware, Virt string
	// MachineID is /etc/machine-id, 32 hex digits (machine-id(5)); may be empty.
	MachineID string
	Taint     Taint
	// Lockdown is none, integrity or confidentiality; empty when the kernel has
	// no lockdown (kernel_lockdown(7)).
	Lockdown string
	// SigEnforce tells that only modules signed by a known key are loaded.
	SigEnforce bool
	// ModulesDisabled tells that kernel.modules_disabled is set: no module is
	// loaded or unloaded until the next boot.
	ModulesDisabled bool
	// Container names what guest we are, "docker", "lxc"; empty on a host.
	Container string
	// Root and CapSysModule are this process's effective rights.
	Root, CapSysModule bool
}

// Inspect reads the facts. What is missing is left zero and shows up in
// Requirements; an error means that the kernel's own name could not be read.
func (s *System) Inspect() (Facts, error) {
	f := Facts{
		Kernel: livepatch.Kernel{
			Release: s.line("proc/sys/kernel/osrelease"),
			Version: s.line("proc/sys/kernel/version"),
			// The file exists since Linux 6.1; before that we are what the
			// kernel runs.
			Arch: DistributionArch(cmp.Or(s.line("proc/sys/kernel/arch"), runtime.GOARCH)),
		},
		// patch_state exists exactly where livepatches have a transition; the
		// folder alone is there since 4.0 (fs/proc/base.c, kernel/livepatch).
		Livepatch:       s.exists("sys/kernel/livepatch") && s.exists("proc/self/patch_state"),
		BootID:          s.line("proc/sys/kernel/random/boot_id"),
		Taint:           s.Taint(),
		MachineID:       s.line("etc/machine-id"),
		Lockdown:        parseLockdown(s.line("sys/kernel/security/lockdown")),
		SigEnforce:      s.line("sys/module/module/parameters/sig_enforce") == "Y",
		ModulesDisabled: s.line("proc/sys/kernel/modules_disabled") == "1",
		Container:       s.container(),
	}
	if f.Kernel.Release == "" {
		return f, livepatch.Errorf(livepatch.CodeUnsupported, "the kernel's release cannot be read from %s: is /proc mounted?", s.path("proc/sys/kernel/osrelease"))
	}
	// "Ubuntu 6.8.0-1047.50-aws 6.8.12": distributor, its version, upstream's.
	if fields := strings.Fields(s.line("proc/version_signature")); len(fields) >= 2 {
		f.Kernel.Signature = fields[1]
	}
	if notes, err := s.read("sys/kernel/notes"); err == nil {
		f.Kernel.BuildID, _ = livepatch.BuildIDFromNotes(notes, binary.NativeEndian)
	}
	cpuinfo := s.line("proc/cpuinfo")
	f.CPUModel = parseCPUModel(cpuinfo)
	f.Hardware = s.hardware()
	f.Virt = s.virt(cpuinfo, f.Hardware)
	f.Uptime = parseUptime(s.line("proc/uptime"))
	f.BootTime = parseBootTime(s.line("proc/stat"))
	f.Root, f.CapSysModule = parseRights(s.line("proc/self/status"))
	return f, nil
}

// DistributionArch maps the machine of uname(2) or Go's name of it to the name
// that distributions give packages (dpkg's cputable); unknown ones stay.
func DistributionArch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "ppc64le":
		return "ppc64el"
	case "i386", "i486", "i586", "i686", "386":
		return "i386"
	case "armv7l", "armv8l", "arm":
		return "armhf"
	case "loongarch64":
		return "loong64"
	}
	return machine
}

// parseLockdown returns the word in brackets of "none [integrity] confidentiality".
func parseLockdown(s string) string {
	_, rest, _ := strings.Cut(s, "[")
	mode, _, _ := strings.Cut(rest, "]")
	return mode
}

// parseCPUModel knows the names that x86 ("model name"), POWER ("cpu"), MIPS and
// RISC-V kernels give the model in /proc/cpuinfo; arm64 and s390x have none.
func parseCPUModel(cpuinfo string) string {
	for _, want := range []string{"model name", "cpu model", "uarch", "cpu"} {
		for line := range strings.Lines(cpuinfo) {
			key, value, ok := strings.Cut(line, ":")
			if ok && strings.TrimSpace(key) == want {
				return strings.TrimSpace(value)
			}
		}
	}
	return ""
}

func parseUptime(s string) time.Duration {
	first, _, _ := strings.Cut(s, " ")
	d, err := time.ParseDuration(first + "s")
	if err != nil {
		return 0
	}
	return d
}

// parseBootTime reads the line "btime SECONDS" of /proc/stat.
func parseBootTime(stat string) time.Time {
	for line := range strings.Lines(stat) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				return time.Unix(n, 0).UTC()
			}
		}
	}
	return time.Time{}
}

// capSysModule is CAP_SYS_MODULE's bit (include/uapi/linux/capability.h).
const capSysModule = 16

// parseRights reads the effective user and capabilities from /proc/self/status.
func parseRights(status string) (root, sysModule bool) {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case key == "Uid" && len(fields) > 1: // real, effective, saved, file system
			root = fields[1] == "0"
		case key == "CapEff" && len(fields) > 0:
			bits, err := strconv.ParseUint(fields[0], 16, 64)
			sysModule = err == nil && bits>>capSysModule&1 == 1
		}
	}
	return root, sysModule
}

// container tells which container we are in, by the marks that container
// managers leave (systemd's container interface), most telling first.
func (s *System) container() string {
	if c := s.line("run/systemd/container"); c != "" {
		return c
	}
	if env, err := s.read("proc/1/environ"); err == nil {
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if c, ok := bytes.CutPrefix(v, []byte("container=")); ok && len(c) > 0 {
				return string(c)
			}
		}
	}
	switch {
	case s.exists(".dockerenv"):
		return "docker"
	case s.exists("run/.containerenv"):
		return "podman"
	case s.exists("proc/vz") && !s.exists("proc/bc"):
		// OpenVZ hosts have /proc/bc, guests only /proc/vz.
		return "openvz"
	}
	return ""
}

// HasModule tells whether a module of this name is loaded, as a livepatch or not.
// Modules built in have a folder in /sys/module too, but no initstate.
func (s *System) HasModule(name string) bool {
	return livepatch.ValidModuleName(name) && s.exists(filepath.Join("sys/module", name, "initstate"))
}

// Leftovers are livepatch modules that are loaded but patch nothing: a replacing
// patch took their place, or they were disabled. They can be removed. The kernel
// marks livepatch modules with the taint letter K in /proc/modules.
func (s *System) Leftovers() ([]string, error) {
	b, err := os.ReadFile(s.path("proc/modules"))
	if gone(err) {
		return nil, nil // built without loadable modules
	}
	if err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	var names []string
	for _, name := range parseLivepatchModules(string(b)) {
		if !s.exists(filepath.Join(livepatchDir, name)) {
			names = append(names, name)
		}
	}
	return names, nil
}

// parseLivepatchModules returns the names of the modules with taint K in
// /proc/modules: "name size refs users state address (OEK)"; taints come last and
// only where there are some (kernel/module/procfs.c, m_show).
func parseLivepatchModules(modules string) []string {
	var names []string
	for line := range strings.Lines(modules) {
		fields := strings.Fields(line)
		if len(fields) < 7 || !livepatch.ValidModuleName(fields[0]) {
			continue
		}
		if taints := fields[len(fields)-1]; strings.HasPrefix(taints, "(") && strings.Contains(taints, "K") {
			names = append(names, fields[0])
		}
	}
	return names
}
