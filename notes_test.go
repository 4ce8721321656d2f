package livepatch_test

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"livepatch"
)

// note is one ELF note, padded as the gABI says.
func note(order binary.AppendByteOrder, owner string, kind uint32, desc []byte) []byte {
	b := order.AppendUint32(nil, uint32(len(owner)))
	b = order.AppendUint32(b, uint32(len(desc)))
	b = order.AppendUint32(b, kind)
	b = append(append(b, owner...), make([]byte, -len(owner)&3)...)
	return append(append(b, desc...), make([]byte, -len(desc)&3)...)
}

func TestBuildIDFromNotes(t *testing.T) {
	t.Parallel()
	id := "4f61d8f6405b1c6eed15a7a3e2e27067394202d3"
	raw, _ := hex.DecodeString(id)
	le, be := binary.LittleEndian, binary.BigEndian
	xen := note(le, "Xen\x00", 6, []byte("linux\x00"))
	gnu := note(le, "GNU\x00", 3, raw)
	for name, tt := range map[string]struct {
		notes []byte
		order binary.ByteOrder
		want  string
	}{
		"alone":                 {gnu, le, id},
		"after another":         {append(xen, gnu...), le, id},
		"big-endian":            {note(be, "GNU\x00", 3, raw), be, id},
		"another kind of GNU's": {note(le, "GNU\x00", 5, raw), le, ""},
		"another owner":         {note(le, "GN\x00", 3, raw), le, ""},
		"wrong byte order":      {gnu, be, ""},
		"cut off":               {gnu[:len(gnu)-1], le, ""},
		"too long to be one":    {note(le, "GNU\x00", 3, make([]byte, 64)), le, ""},
		"empty":                 {nil, le, ""},
	} {
		got, ok := livepatch.BuildIDFromNotes(tt.notes, tt.order)
		if ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: got %q, %v; want %q", name, got, ok, tt.want)
		}
	}
}

// A build id that is found is a valid one and stands in the notes; and it is found
// whatever well-formed note comes before it.
func FuzzBuildIDFromNotes(f *testing.F) {
	f.Add([]byte{}, "Xen\x00", []byte("linux"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x03\x00\x00\x00GNU\x00"), "", []byte{})
	f.Fuzz(func(t *testing.T, notes []byte, owner string, desc []byte) {
		le := binary.LittleEndian
		if id, ok := livepatch.BuildIDFromNotes(notes, le); ok {
			if !livepatch.ValidBuildID(id) || !strings.Contains(hex.EncodeToString(notes), id) {
				t.Errorf("build id %q is not in the notes", id)
			}
		}
		if owner == "GNU\x00" {
			return
		}
		want := "00112233445566778899aabbccddeeff00112233"
		raw, _ := hex.DecodeString(want)
		both := append(note(le, owner, 3, desc), note(le, "GNU\x00", 3, raw)...)
		if got, ok := livepatch.BuildIDFromNotes(both, le); !ok || got != want {
			t.Errorf("got %q, %v behind a note of %q", got, ok, owner)
		}
	})
}
