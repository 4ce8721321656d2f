package main

import "livepatch/internal/elfobj"

// debianArch is the distribution's name of a machine that has livepatching, "" for
// others. Numbers are those of e_machine.
func debianArch(m elfobj.Machine) string {
	switch m {
	case 62: // EM_X86_64
		return "amd64"
	case 183: // EM_AARCH64
		return "arm64"
	case 21: // EM_PPC64
		return "ppc64el"
	case 22: // EM_S390
		return "s390x"
	}
	return ""
}
