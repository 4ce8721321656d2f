package kernel

import (
	"strings"
)

// MaxHardware bounds Facts.Hardware and Facts.Virt, in bytes.
const MaxHardware = 64

// hardware names the system's model: the vendor and product that the firmware's DMI
// tables give, else the model of the device tree; empty where there is neither. It
// names no single machine: serial numbers are not read.
func (s *System) hardware() string {
	name := s.line("sys/class/dmi/id/sys_vendor") + " " + s.line("sys/class/dmi/id/product_name")
	if strings.TrimSpace(name) == "" {
		name = s.line("proc/device-tree/model") // ends with a NUL byte
	}
	return shortName(name)
}

// shortName makes one line of printable words, at most MaxHardware bytes.
func shortName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(name, "?"))
	name = strings.Join(strings.Fields(name), " ")
	return strings.TrimSpace(strings.ToValidUTF8(name[:min(len(name), MaxHardware)], ""))
}

// virtualMachines are the words by which a virtual machine's DMI tables tell what
// runs it, most telling first.
func virtualMachines() [][2]string {
	return [][2]string{
		{"VMware", "vmware"}, {"innotek GmbH", "virtualbox"}, {"VirtualBox", "virtualbox"}, {"Xen", "xen"}, {"HVM domU", "xen"},
		{"Microsoft Corporation Virtual Machine", "hyperv"}, {"Parallels", "parallels"}, {"BHYVE", "bhyve"}, {"Apple Virtualization", "apple"},
		{"Amazon EC2", "kvm"}, {"Google", "kvm"}, {"OpenStack", "kvm"}, {"KubeVirt", "kvm"}, {"KVM", "kvm"},
		{"QEMU", "qemu"}, {"Bochs", "qemu"},
	}
}

// virt names the hypervisor below us, "none" on bare metal, empty when that cannot
// be told. An x86 hypervisor shows itself by a bit of CPUID that no real processor
// sets (flag "hypervisor" of /proc/cpuinfo); which one it is, the clock that it
// offers and the DMI tables tell. Xen has /sys/hypervisor/type.
func (s *System) virt(cpuinfo, hardware string) string {
	if kind := shortName(s.line("sys/hypervisor/type")); kind != "" {
		return kind
	}
	flags, x86 := cpuFlags(cpuinfo)
	if x86 && !strings.Contains(flags+" ", " hypervisor ") {
		return "none"
	}
	if strings.Contains(s.line("sys/devices/system/clocksource/clocksource0/available_clocksource"), "kvm-clock") {
		return "kvm"
	}
	for _, v := range virtualMachines() {
		if strings.Contains(hardware, v[0]) {
			return v[1]
		}
	}
	switch {
	case x86:
		return "other"
	case hardware != "":
		return "none"
	}
	return ""
}

// cpuFlags are the flags of the first x86 processor in /proc/cpuinfo, with a space
// before each; ok is false on other architectures.
func cpuFlags(cpuinfo string) (flags string, ok bool) {
	for line := range strings.Lines(cpuinfo) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "flags" {
			return " " + strings.TrimSpace(value), true
		}
	}
	return "", false
}
