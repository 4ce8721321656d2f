package kernel

import (
	"cmp"
	"fmt"
	"slices"

	"livepatch"
)

// Requirement is one thing that livepatching needs, as found.
type Requirement struct {
	// Name is short: "CONFIG_LIVEPATCH".
	Name string
	OK   bool
	// Found is what was seen.
	Found string
	// Remedy is what to do about it; empty when it is OK.
	Remedy string
	// Code is why nothing may be loaded while it is not OK; empty when it is
	// only worth knowing.
	Code livepatch.Code
}

// Err is the refusal that follows; nil when the requirement is met or advisory.
func (r Requirement) Err() error {
	if r.OK || r.Code == "" {
		return nil
	}
	return livepatch.Errorf(r.Code, "%s: %s. %s", r.Name, r.Found, r.Remedy)
}

// reliable are the architectures with HAVE_RELIABLE_STACKTRACE. On others sleeping
// tasks are only moved when they cross into user space, so a transition may never
// end (klp_enable_patch warns of it).
var reliable = []string{"amd64", "s390x", "ppc64el", "arm64", "loong64"}

// Requirements holds the facts against what livepatching needs, the gravest first.
// Pure.
func Requirements(f Facts) []Requirement {
	all := requirements(f)
	for i := range all {
		if all[i].OK {
			all[i].Remedy = ""
		}
	}
	return all
}

func requirements(f Facts) []Requirement {
	return []Requirement{
		hostRequirement(f),
		{
			Name: "CONFIG_LIVEPATCH", OK: f.Livepatch, Code: livepatch.CodeUnsupported,
			Found:  yesNo(f.Livepatch, "kernel "+f.Kernel.Release+" can be livepatched", "kernel "+f.Kernel.Release+" is built without livepatching, or is older than 4.12"),
			Remedy: "Boot a kernel of the distribution that has CONFIG_LIVEPATCH=y.",
		},
		{
			Name: "root", OK: f.Root, Code: livepatch.CodeNotPrivileged,
			Found:  yesNo(f.Root, "runs as root", "does not run as root"),
			Remedy: "Start the service livepatchd as root.",
		},
		{
			Name: "CAP_SYS_MODULE", OK: f.CapSysModule, Code: livepatch.CodeNotPrivileged,
			Found:  yesNo(f.CapSysModule, "may load modules", "may not load modules"),
			Remedy: "Start livepatchd with the capability CAP_SYS_MODULE: its unit must not drop it.",
		},
		{
			Name: "modules_disabled", OK: !f.ModulesDisabled, Code: livepatch.CodeUnsupported,
			Found:  yesNo(!f.ModulesDisabled, "modules may be loaded", "kernel.modules_disabled is 1: no module can be loaded until the next boot"),
			Remedy: "Remove the setting from /etc/sysctl.d and reboot.",
		},
		{
			Name: "build id", OK: livepatch.ValidBuildID(f.Kernel.BuildID), Code: livepatch.CodeUnsupported,
			Found:  cmp.Or(f.Kernel.BuildID, "the kernel does not tell its build id in /sys/kernel/notes"),
			Remedy: "Boot a kernel of the distribution: without a build id nobody can tell which binary runs.",
		},
		architectureRequirement(f),
		signatureRequirement(f),
		{
			Name: "machine id", OK: f.MachineID != "", Code: livepatch.CodeUnsupported,
			Found:  cmp.Or(f.MachineID, "/etc/machine-id is missing or empty"),
			Remedy: "Run systemd-machine-id-setup.",
		},
		{
			Name: "kernel health", OK: f.Taint&TaintTrouble == 0,
			Found:  yesNo(f.Taint&TaintTrouble == 0, "no warning, oops or machine check since boot", fmt.Sprintf("the kernel is tainted (%s): it warned, oopsed or met a hardware error since boot", f.Taint)),
			Remedy: "Look at the kernel log (journalctl -k); a reboot clears it.",
		},
	}
}

func hostRequirement(f Facts) Requirement {
	r := Requirement{Name: "host", OK: f.Container == "", Found: "not a container", Code: livepatch.CodeUnsupported}
	if !r.OK {
		r.Found = "this is a container (" + f.Container + "): the kernel is the host's"
		r.Remedy = "Install livepatch on the host; that protects its containers too."
	}
	return r
}

func architectureRequirement(f Facts) Requirement {
	r := Requirement{Name: "architecture", OK: slices.Contains(reliable, f.Kernel.Arch), Found: f.Kernel.Arch}
	if !r.OK {
		r.Found += " has no reliable stack traces: a transition may take very long"
		r.Remedy = "Expect transitions that are reversed; a reboot into a fixed kernel always helps."
	}
	return r
}

// signatureRequirement is advisory: whether the key that will sign is enrolled is
// known only when the kernel judges a module.
func signatureRequirement(f Facts) Requirement {
	locked := f.Lockdown != "" && f.Lockdown != "none"
	r := Requirement{Name: "module signatures", OK: !f.SigEnforce && !locked, Found: "the kernel does not insist on signed modules"}
	switch {
	case f.SigEnforce:
		r.Found = "the kernel loads only modules signed by a key it knows (module.sig_enforce)"
	case locked:
		r.Found = "the kernel is locked down (" + f.Lockdown + ") and loads only modules signed by a key it knows"
	}
	if !r.OK {
		r.Remedy = "Enrol the operator's certificate once: mokutil --import CERTIFICATE, then reboot and confirm."
	}
	return r
}

// Refusal is the error of the first unmet requirement that forbids loading, or
// nil. Pure.
func Refusal(f Facts) error {
	for _, r := range Requirements(f) {
		if err := r.Err(); err != nil {
			return err
		}
	}
	return nil
}

func yesNo(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}
