package livepatch

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Version is a livepatch's version, "121.4" in text. It only grows for one
// kernel: a higher version carries all fixes of the lower ones. Major names a set
// of fixes and is part of module names; Minor counts rebuilds of it. The zero
// Version is "no livepatch" and is written as the empty string.
type Version struct {
	Major, Minor uint32
}

// ParseVersion reads "MAJOR.MINOR" in decimal without sign or leading zeros; the
// empty string is the zero Version.
func ParseVersion(s string) (Version, error) {
	if s == "" {
		return Version{}, nil
	}
	major, minor, ok := strings.Cut(s, ".")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	v := Version{uint32(a), uint32(b)}
	if !ok || err1 != nil || err2 != nil || v.String() != s {
		return Version{}, Errorf(CodeInvalid, "livepatch version %q is not of the form 121.4", s)
	}
	return v, nil
}

func (v Version) String() string {
	if v.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d.%d", v.Major, v.Minor)
}

// IsZero tells whether v stands for "no livepatch".
func (v Version) IsZero() bool { return v == Version{} }

// Compare is negative when v is older than w, positive when it is newer.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor))
}

// MarshalText implements encoding.TextMarshaler.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Version) UnmarshalText(b []byte) (err error) {
	*v, err = ParseVersion(string(b))
	return err
}

// Priority is how urgent the distribution says a vulnerability is.
type Priority string

// The priorities, most urgent first.
const (
	PriorityCritical   Priority = "critical"
	PriorityHigh       Priority = "high"
	PriorityMedium     Priority = "medium"
	PriorityLow        Priority = "low"
	PriorityNegligible Priority = "negligible"
)

// Fix is one vulnerability that a livepatch closes.
type Fix struct {
	// CVE is upper case, "CVE-2026-1234".
	CVE      string   `json:"cve"`
	Priority Priority `json:"priority"`
	// Description is one paragraph for people; may be empty.
	Description string `json:"description,omitempty"`
}

var cveRE = regexp.MustCompile(`^CVE-[0-9]{4}-[0-9]{4,19}$`)

// ParseFix reads "CVE-2026-1234:high". The name may be in lower case.
func ParseFix(s string) (Fix, error) {
	name, prio, ok := strings.Cut(strings.TrimSpace(s), ":")
	f := Fix{CVE: strings.ToUpper(name), Priority: Priority(strings.ToLower(prio))}
	if !ok {
		return Fix{}, Errorf(CodeInvalid, "fix %q has no priority: write it as CVE-2026-1234:high", s)
	}
	return f, f.Validate()
}

// Validate checks the form of the name and that the priority is a known one.
func (f Fix) Validate() error {
	if !cveRE.MatchString(f.CVE) {
		return Errorf(CodeInvalid, "%q is not a CVE name such as CVE-2026-1234", f.CVE)
	}
	switch f.Priority {
	case PriorityCritical, PriorityHigh, PriorityMedium, PriorityLow, PriorityNegligible:
		return nil
	}
	return Errorf(CodeInvalid, "priority %q of %s is not one of critical, high, medium, low, negligible", f.Priority, f.CVE)
}

// Object is one patched object, vmlinux or a module, and what is replaced in it.
type Object struct {
	// Name is "vmlinux" or the module's name with underscores.
	Name string `json:"name"`
	// Functions are the names of the replaced functions, in the module's order.
	Functions []string `json:"functions"`
}

// Module is what a livepatch module says of itself, and its bytes' identity.
type Module struct {
	// Name is the module's name as /sys/module shows it.
	Name string `json:"name"`
	// VerMagic is the module's vermagic; its first word is the kernel release.
	VerMagic string `json:"vermagic"`
	// SrcVersion is modpost's checksum of the sources; may be empty.
	SrcVersion string `json:"srcversion,omitempty"`
	// Replace tells that the patch replaces all earlier ones atomically
	// (klp_patch.replace, Linux 5.1 and later); else it stacks on them.
	Replace bool `json:"replace"`
	// Objects is what it patches.
	Objects []Object `json:"objects"`
	// Signed tells that a PKCS#7 signature is appended in the kernel's format.
	Signed bool `json:"signed"`
	// Size is the length of the .ko in bytes, 1 to MaxModuleSize.
	Size int64 `json:"size"`
	// SHA256 is the hex digest of the .ko.
	SHA256 string `json:"sha256"`
}

// Sizes that bound what is read before anything is verified, in bytes.
const (
	// MaxModuleSize bounds a livepatch module. The largest seen in the field are
	// a few MB.
	MaxModuleSize = 64 << 20
	// MaxArchiveSize bounds the compressed module on the wire.
	MaxArchiveSize = MaxModuleSize
	// MaxCatalogueSize bounds the catalogue of one kernel.
	MaxCatalogueSize = 4 << 20
)

// Blob names bytes by their digest.
type Blob struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	// Name is what a person would call the file; no part of its identity.
	Name string `json:"name,omitempty"`
}

// Livepatch is one version of the livepatch of one kernel, as the operator signed
// it: part of a Catalogue.
type Livepatch struct {
	Version Version `json:"version"`
	// BuildIDs are the kernel binaries it was proven against; at least one.
	BuildIDs []string `json:"build_ids"`
	Module   Module   `json:"module"`
	// Archive is the zstd-compressed module, as the stream serves it.
	Archive Blob `json:"archive"`
	// Fixes lists every vulnerability this version closes, those of earlier
	// versions included.
	Fixes []Fix `json:"fixes"`
	// Source is what the module was built from; zero when not given.
	Source Blob `json:"source,omitzero"`
	// Published is when it was signed, UTC.
	Published time.Time `json:"published"`
	// Withdrawn is set when the patch must no longer run anywhere.
	Withdrawn *Withdrawal `json:"withdrawn,omitempty"`
}

// Withdrawal is the signed word that a livepatch must be unloaded where the
// kernel can, and never be loaded again.
type Withdrawal struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
}

// Catalogue is everything the stream says about one kernel. It is one signed
// target of the stream, so that a client can check all versions of its own kernel
// against each other and never pays for other kernels' entries.
type Catalogue struct {
	Kernel KernelTarget `json:"kernel"`
	// Patches are in order of growing version.
	Patches []Livepatch `json:"patches"`
	// Unpatchable lists vulnerabilities of this kernel that cannot be
	// livepatched: the machine must reboot into a newer kernel.
	Unpatchable []Unpatchable `json:"unpatchable,omitempty"`
	// CoveredUntil is the day the coverage of this kernel ends, YYYY-MM-DD; empty
	// when no end is set.
	CoveredUntil string `json:"covered_until,omitempty"`
}

// Unpatchable is a vulnerability for which only a newer kernel helps.
type Unpatchable struct {
	Fix
	Reason string `json:"reason"`
}

// Find returns the patch with version v, or nil.
func (c *Catalogue) Find(v Version) *Livepatch {
	for i := range c.Patches {
		if c.Patches[i].Version == v {
			return &c.Patches[i]
		}
	}
	return nil
}

// FindModule returns the patch whose module has this name, or nil.
func (c *Catalogue) FindModule(name string) *Livepatch {
	for i := range c.Patches {
		if c.Patches[i].Module.Name == name {
			return &c.Patches[i]
		}
	}
	return nil
}

// MadeFor tells whether p is for the kernel k: same binary, not just same name.
// A kernel whose build id is unknown is nobody's.
func (p *Livepatch) MadeFor(k Kernel) bool {
	release, _, _ := strings.Cut(p.Module.VerMagic, " ")
	return release == k.Release && k.BuildID != "" && slices.Contains(p.BuildIDs, k.BuildID)
}

// Latest returns the newest patch for the binary k that is not withdrawn, or nil.
func (c *Catalogue) Latest(k Kernel) *Livepatch {
	for i := len(c.Patches) - 1; i >= 0; i-- {
		if c.Patches[i].Withdrawn == nil && c.Patches[i].MadeFor(k) {
			return &c.Patches[i]
		}
	}
	return nil
}

var (
	digestRE = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// moduleNameRE: MODULE_NAME_LEN is 64 - sizeof(unsigned long), with the final
	// NUL (include/linux/moduleparam.h), so 55 bytes; a module's file name maps
	// dashes to underscores.
	moduleNameRE = regexp.MustCompile(`^[A-Za-z0-9_]{1,55}$`)
)

// ValidModuleName tells whether name can be a module's name in /sys/module.
func ValidModuleName(name string) bool { return moduleNameRE.MatchString(name) }

// Validate holds the catalogue against its own rules: a valid target, versions and
// fixes that only grow, module names that differ from each other (the kernel
// refuses to load a module under a name that is loaded, so no patch could replace
// another), vermagic for this release, sizes in bounds.
func (c *Catalogue) Validate() error {
	if err := c.Kernel.Validate(); err != nil {
		return err
	}
	names := map[string]bool{}
	for i, p := range c.Patches {
		if i > 0 && p.Version.Compare(c.Patches[i-1].Version) <= 0 {
			return Errorf(CodeInvalid, "livepatch %s of %s does not follow %s: versions only grow", p.Version, c.Kernel.Release, c.Patches[i-1].Version)
		}
		if err := p.Validate(c.Kernel); err != nil {
			return fmt.Errorf("livepatch %s: %w", p.Version, err)
		}
		if names[p.Module.Name] {
			return Errorf(CodeInvalid, "two livepatches of %s have the module name %s: give each version its own, the kernel cannot replace a module by one of the same name", c.Kernel.Release, p.Module.Name)
		}
		names[p.Module.Name] = true
	}
	for _, u := range c.Unpatchable {
		if err := u.Validate(); err != nil {
			return err
		}
	}
	if c.CoveredUntil != "" {
		if _, err := time.Parse(time.DateOnly, c.CoveredUntil); err != nil {
			return Errorf(CodeInvalid, "end of coverage %q is not a day of the form 2027-03-19", c.CoveredUntil)
		}
	}
	return nil
}

// Validate checks one livepatch against the kernel it is listed under.
func (p *Livepatch) Validate(k KernelTarget) error {
	release, _, _ := strings.Cut(p.Module.VerMagic, " ")
	switch {
	case p.Version.IsZero():
		return Errorf(CodeInvalid, "livepatch without a version")
	case len(p.BuildIDs) == 0:
		return Errorf(CodeInvalid, "module %s names no build id: name the kernel's image or its build id", p.Module.Name)
	case !ValidModuleName(p.Module.Name):
		return Errorf(CodeInvalid, "module name %q is not one the kernel accepts", p.Module.Name)
	case release != k.Release:
		return Errorf(CodeWrongKernel, "module %s is built for kernel %q, not for %s", p.Module.Name, release, k.Release)
	case p.Module.Size < 1 || p.Module.Size > MaxModuleSize:
		return Errorf(CodeInvalid, "module %s has %d bytes, which is outside 1 to %d", p.Module.Name, p.Module.Size, MaxModuleSize)
	case p.Archive.Size < 1 || p.Archive.Size > MaxArchiveSize:
		return Errorf(CodeInvalid, "archive of %s has %d bytes, which is outside 1 to %d", p.Module.Name, p.Archive.Size, MaxArchiveSize)
	case !digestRE.MatchString(p.Module.SHA256), !digestRE.MatchString(p.Archive.SHA256):
		return Errorf(CodeInvalid, "module %s: a digest is not SHA-256 in lower-case hex", p.Module.Name)
	}
	for _, id := range p.BuildIDs {
		if !ValidBuildID(id) {
			return Errorf(CodeInvalid, "build id %q is not lower-case hex of 8 to 64 digits", id)
		}
	}
	for _, f := range p.Fixes {
		if err := f.Validate(); err != nil {
			return err
		}
	}
	return nil
}
