package kernel

import (
	"encoding/binary"
	"encoding/hex"

	"livepatch"
)

// noteBuildID is NT_GNU_BUILD_ID, of the owner "GNU".
const noteBuildID = 3

// ParseBuildID finds the GNU build id in ELF notes as /sys/kernel/notes gives
// them: in the kernel's own byte order, which is that of this program. Names and
// descriptors are padded to four bytes (gABI "Note Section"). ok is false when
// there is none or the notes are malformed.
func ParseBuildID(notes []byte) (id string, ok bool) {
	for len(notes) >= 12 {
		nameSize := uint64(binary.NativeEndian.Uint32(notes))
		descSize := uint64(binary.NativeEndian.Uint32(notes[4:]))
		kind := binary.NativeEndian.Uint32(notes[8:])
		notes = notes[12:]
		descAt := (nameSize + 3) &^ 3
		if descAt+descSize > uint64(len(notes)) {
			return "", false
		}
		if kind == noteBuildID && string(notes[:nameSize]) == "GNU\x00" {
			id = hex.EncodeToString(notes[descAt : descAt+descSize])
			return id, livepatch.ValidBuildID(id)
		}
		// The padding of the last descriptor may be missing.
		notes = notes[min(descAt+(descSize+3)&^3, uint64(len(notes))):]
	}
	return "", false
}
