// Package stream is the signed stream of livepatches, both ends of it: Create and
// View make and change it where the offline keys are, Publisher checks a change
// and puts it online, Reader follows it on a machine and believes nothing that is
// not signed.
//
// The stream is a TUF repository (https://theupdateframework.github.io/specification/v1.0.31/)
// with consistent snapshots. Root and targets are signed offline, snapshot and
// timestamp by the server. Targets delegates to 64 hash bins (TAP 15), and every
// kernel is one target of its bin, ARCH/RELEASE/catalogue.json: a client downloads
// the bin and the catalogue of its own kernel and nothing of the others. The
// catalogue binds modules, archives and sources by size and SHA-256.
//
// The rules of verification are go-tuf's (its trustedmetadata package). The walk
// around them is ours and not go-tuf's Updater, because that one reads the clock
// itself, takes no context, replaces its cache file by file and unsynced, and
// never recovers from a cache file that a crash cut short.
package stream

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

const (
	// binBits is how many bits of a target path's hash choose its bin: 64 bins.
	// With 1,000 kernels a bin then lists 16 targets, and the snapshot 65 files.
	binBits   = 6
	binPrefix = "kernels"

	catalogueFile = "catalogue.json"

	// storePrefix is what names in the store have in front of their name in the
	// stream.
	storePrefix = "stream/"

	timestampName = "metadata/timestamp.json"
)

// Bounds of what is read before it is verified, in bytes.
const (
	maxRootSize      = 512 << 10
	maxTimestampSize = 16 << 10
	maxSnapshotSize  = 256 << 10
	maxTargetsSize   = 4 << 20
	// maxRoots bounds how many root rotations one refresh follows.
	maxRoots = 256
)

// TargetPath is the name of a kernel's catalogue in the stream.
func TargetPath(k livepatch.KernelTarget) string {
	return k.Arch + "/" + k.Release + "/" + catalogueFile
}

// ParseTargetPath is the inverse of TargetPath.
func ParseTargetPath(path string) (livepatch.KernelTarget, error) {
	parts := strings.Split(path, "/")
	if len(parts) != 3 || parts[2] != catalogueFile {
		return livepatch.KernelTarget{}, livepatch.Errorf(livepatch.CodeInvalid, "target %q is not of the form ARCH/RELEASE/catalogue.json", path)
	}
	k := livepatch.KernelTarget{Arch: parts[0], Release: parts[1]}
	return k, k.Validate()
}

// ArchiveName is the name in the stream of the archive with this SHA-256; its URL
// below /stream/. The server's store has it under StoreName of it.
func ArchiveName(sha256 string) string { return "archives/" + sha256 + ".zst" }

// SourceName is the name in the stream of the source with this SHA-256.
func SourceName(sha256 string) string { return "sources/" + sha256 }

// StoreName is where a store keeps the stream's file name.
func StoreName(name string) string { return storePrefix + name }

// Fingerprint is how people name a first root: "sha256:" and 64 hex digits over
// the bytes of 1.root.json.
func Fingerprint(root []byte) string { return "sha256:" + hexDigest(root) }

func hexDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// metadataName is the name in the stream of version v of a role.
func metadataName(role string, v int64) string {
	return fmt.Sprintf("metadata/%d.%s.json", v, role)
}

// catalogueName is the name in the stream of the catalogue at a target path with
// the given content: TUF puts the hash in front of the last element.
func catalogueName(path string, digest string) string {
	folder := strings.TrimSuffix(path, catalogueFile)
	return "targets/" + folder + digest + "." + catalogueFile
}

// bins describes the delegation, without keys.
func bins() *metadata.SuccinctRoles {
	return &metadata.SuccinctRoles{BitLength: binBits, NamePrefix: binPrefix}
}

// binOf is the bin that a target path belongs to.
func binOf(path string) string { return bins().GetRolesForTarget(path)[0].Name }

// Lifetimes is how long each kind of metadata is good for once signed. Zero fields
// get the default.
type Lifetimes struct {
	// Root and Targets (which is also that of the bins) are signed offline;
	// default a year.
	Root, Targets time.Duration
	// Snapshot and Timestamp are renewed by the server; default a week and a day.
	// Timestamp is how long a withheld update can go unnoticed.
	Snapshot, Timestamp time.Duration
}

func (l Lifetimes) withDefaults() Lifetimes {
	const day = 24 * time.Hour
	for _, f := range []struct {
		d        *time.Duration
		standard time.Duration
	}{{&l.Root, 365 * day}, {&l.Targets, 365 * day}, {&l.Snapshot, 7 * day}, {&l.Timestamp, day}} {
		if *f.d == 0 {
			*f.d = f.standard
		}
	}
	return l
}

// expiry is the end of a lifetime, in the form that metadata has it: UTC, whole
// seconds.
func expiry(now time.Time, life time.Duration) time.Time {
	return now.Add(life).UTC().Truncate(time.Second)
}
