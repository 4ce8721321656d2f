package livepatch

import (
	"encoding/binary"
	"encoding/hex"
	"regexp"
	"strings"
)

// Kernel is what a running kernel says of itself.
//
// Release, Version and Arch come from uname(2); BuildID from the NT_GNU_BUILD_ID
// note in /sys/kernel/notes. The build id identifies the binary: a kernel that
// somebody rebuilt under the same release has another.
type Kernel struct {
	// Release is uname -r, for example "6.1.0-47-cloud-amd64".
	Release string `json:"release"`
	// Version is uname -v, for example
	// "#1 SMP PREEMPT_DYNAMIC Debian 6.1.170-3 (2026-05-08)". Free text.
	Version string `json:"version,omitempty"`
	// Arch is the distribution's name of the architecture: amd64, arm64, s390x.
	Arch string `json:"arch"`
	// BuildID is the GNU build id, lower-case hex, usually 40 digits.
	BuildID string `json:"build_id,omitempty"`
	// Signature is field 2 of /proc/version_signature where the kernel has that
	// file (Ubuntu), for example "6.8.0-1047.50-aws"; else empty.
	Signature string `json:"signature,omitempty"`
}

// Name is how people and programs are told of the kernel: the version signature
// where there is one, else the release.
func (k Kernel) Name() string {
	if k.Signature != "" {
		return k.Signature
	}
	return k.Release
}

// Series is the upstream series, "6.1" for "6.1.0-47-cloud-amd64". Empty when
// the release does not begin with two numbers.
func (k Kernel) Series() string {
	m := seriesRE.FindStringSubmatch(k.Release)
	if m == nil {
		return ""
	}
	return m[1]
}

// Flavour is what follows version and ABI number in the release: "cloud-amd64"
// for "6.1.0-47-cloud-amd64", "generic" for "6.8.0-60-generic". Empty when the
// release has none.
func (k Kernel) Flavour() string {
	m := flavourRE.FindStringSubmatch(k.Release)
	if m == nil {
		return ""
	}
	return m[1]
}

// Distribution is the vendor that uname -v names: "Debian", "Ubuntu", or "" when
// it names neither.
func (k Kernel) Distribution() string {
	for _, d := range []string{"Ubuntu", "Debian"} {
		if strings.Contains(k.Version, d) {
			return d
		}
	}
	return ""
}

var (
	seriesRE  = regexp.MustCompile(`^(\d+\.\d+)(?:[.-]|$)`)
	flavourRE = regexp.MustCompile(`^\d+\.\d+(?:\.\d+)?-\d+-(.+)$`)

	// releaseRE bounds what may be a release: the kernel's own limit is 64 bytes
	// (__NEW_UTS_LEN); it becomes part of paths and names, so no slash, no space.
	releaseRE = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~_-]{0,63}$`)
	archRE    = regexp.MustCompile(`^[a-z0-9]{2,16}$`)
	buildIDRE = regexp.MustCompile(`^[0-9a-f]{8,64}$`)
)

// KernelTarget names a kernel as the stream does: a release of an architecture.
// Several binaries may go by it; which of them a livepatch is for, its build ids
// tell.
type KernelTarget struct {
	Release string `json:"release"`
	Arch    string `json:"arch"`
}

// Target is the name under which the stream knows k.
func (k Kernel) Target() KernelTarget { return KernelTarget{Release: k.Release, Arch: k.Arch} }

func (t KernelTarget) String() string { return t.Release + " (" + t.Arch + ")" }

// Validate says what is wrong with the target. What passes is safe as part of a
// path.
func (t KernelTarget) Validate() error {
	switch {
	case !releaseRE.MatchString(t.Release):
		return Errorf(CodeInvalid, "kernel release %q is not one that uname -r could print", t.Release)
	case !archRE.MatchString(t.Arch):
		return Errorf(CodeInvalid, "architecture %q is not a distribution's name such as amd64", t.Arch)
	}
	return nil
}

// ValidBuildID tells whether id is a GNU build id in lower-case hex.
func ValidBuildID(id string) bool { return buildIDRE.MatchString(id) }

// noteBuildID is NT_GNU_BUILD_ID, a note of the owner "GNU".
const noteBuildID = 3

// BuildIDFromNotes finds the GNU build id among ELF notes in the given byte order,
// as /sys/kernel/notes and a PT_NOTE segment hold them: name and descriptor are
// padded to four bytes each (System V gABI, "Note Section"). ok is false when
// there is none, or a note before it is malformed.
func BuildIDFromNotes(notes []byte, order binary.ByteOrder) (id string, ok bool) {
	for len(notes) >= 12 {
		nameSize := uint64(order.Uint32(notes))
		descSize := uint64(order.Uint32(notes[4:]))
		kind := order.Uint32(notes[8:])
		notes = notes[12:]
		descAt := (nameSize + 3) &^ 3
		if descAt+descSize > uint64(len(notes)) {
			return "", false
		}
		if kind == noteBuildID && string(notes[:nameSize]) == "GNU\x00" {
			id = hex.EncodeToString(notes[descAt : descAt+descSize])
			return id, ValidBuildID(id)
		}
		// The padding of the last descriptor may be missing.
		notes = notes[min(descAt+(descSize+3)&^3, uint64(len(notes))):]
	}
	return "", false
}
