package localapi

import "livepatch"

// UpgradeRequired says in a sentence why the running kernel needs a newer one and a
// reboot; empty when it does not.
func UpgradeRequired(s Status) string {
	k, ok := runningKernel(s)
	if !ok {
		return ""
	}
	switch {
	case k.Livepatch.State == livepatch.StateKernelUpgradeRequired:
		return "kernel " + k.Kernel + " has a vulnerability that cannot be livepatched; please upgrade the kernel and reboot."
	case k.Supported == livepatch.SupportedUpgrade, k.Supported == livepatch.SupportedEndOfLife:
		return "kernel " + k.Kernel + " gets no livepatches any more; please upgrade the kernel and reboot."
	}
	return ""
}

// Complete returns s with its lists present, if empty, as JSON readers expect them.
func (s Status) Complete() Status {
	if s.Status == nil {
		s.Status = []KernelStatus{}
	}
	if s.Outstanding == nil {
		s.Outstanding = []Fix{}
	}
	if s.Problems == nil {
		s.Problems = []Problem{}
	}
	return s
}
