package kernel_test

import (
	"strings"
	"testing"

	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
)

func TestHardware(t *testing.T) {
	t.Parallel()
	const guest, host = "processor\t: 0\nflags\t\t: fpu vme hypervisor lm\n", "processor\t: 0\nflags\t\t: fpu vme lm\n"
	for name, tt := range map[string]struct {
		vendor, product, cpuinfo string
		more                     [2]string // one further file
		hardware, virt           string
	}{
		"server":       {"Dell Inc.", "PowerEdge  R650 ", host, [2]string{}, "Dell Inc. PowerEdge R650", "none"},
		"kvm":          {"QEMU", "Standard PC (Q35 + ICH9, 2009)", guest, [2]string{"sys/devices/system/clocksource/clocksource0/available_clocksource", "kvm-clock tsc hpet acpi_pm\n"}, "QEMU Standard PC (Q35 + ICH9, 2009)", "kvm"},
		"emulated":     {"QEMU", "Standard PC", guest, [2]string{}, "QEMU Standard PC", "qemu"},
		"vmware":       {"VMware, Inc.", "VMware7,1", guest, [2]string{}, "VMware, Inc. VMware7,1", "vmware"},
		"azure":        {"Microsoft Corporation", "Virtual Machine", guest, [2]string{}, "Microsoft Corporation Virtual Machine", "hyperv"},
		"laptop":       {"Microsoft Corporation", "Surface Pro", host, [2]string{}, "Microsoft Corporation Surface Pro", "none"},
		"cloud":        {"Amazon EC2", "t3.small", guest, [2]string{}, "Amazon EC2 t3.small", "kvm"},
		"cloud, metal": {"Amazon EC2", "c5.metal", host, [2]string{}, "Amazon EC2 c5.metal", "none"},
		"xen guest":    {"", "", guest, [2]string{"sys/hypervisor/type", "xen\n"}, "", "xen"},
		"stranger":     {"Acme", "Hyper", guest, [2]string{}, "Acme Hyper", "other"},
		"arm server":   {"Ampere", "Altra", "processor\t: 0\nFeatures\t: fp\n", [2]string{}, "Ampere Altra", "none"},
		"arm board":    {"", "", "processor\t: 0\nFeatures\t: fp\n", [2]string{"proc/device-tree/model", "Raspberry Pi 4 Model B\x00"}, "Raspberry Pi 4 Model B", "none"},
		"nothing":      {"", "", "", [2]string{}, "", ""},
		"nonsense": {
			strings.Repeat("ä", 90), "x\x1b[31m", host, [2]string{},
			strings.Repeat("ä", 32), "none",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kerneltest.New(t)
			k.Set("sys/class/dmi/id/sys_vendor", tt.vendor+"\n")
			k.Set("sys/class/dmi/id/product_name", tt.product+"\n")
			k.Set("proc/cpuinfo", tt.cpuinfo)
			if tt.more[0] != "" {
				k.Set(tt.more[0], tt.more[1])
			}
			f, err := k.System().Inspect()
			if err != nil || f.Hardware != tt.hardware || f.Virt != tt.virt {
				t.Errorf("Inspect = %q %q (%v), want %q %q", f.Hardware, f.Virt, err, tt.hardware, tt.virt)
			}
			if len(f.Hardware) > kernel.MaxHardware {
				t.Errorf("%d bytes", len(f.Hardware))
			}
		})
	}
}
