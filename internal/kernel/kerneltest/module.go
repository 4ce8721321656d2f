package kerneltest

import (
	"bytes"
	"fmt"
	"strings"

	"livepatch"
)

// Module is what the fake kernel reads of a module file.
type Module struct {
	Name, VerMagic string
	// Livepatch tells that it is a livepatch; other modules just load.
	Livepatch bool
	// Stacked tells that it does not replace the patches before it.
	Stacked bool
	Objects []livepatch.Object
	// Signed tells that a signature is appended.
	Signed bool
}

// signatureMagic ends a signed module (include/linux/module_signature.h).
const signatureMagic = "~Module signature appended~\n"

// Bytes is a module file that the fake reads back as m: the strings of a .modinfo
// section, which real modules have as well, without the ELF around them.
func (m Module) Bytes() []byte {
	var b bytes.Buffer
	set := func(key, value string) { fmt.Fprintf(&b, "%s=%s\x00", key, value) }
	set("name", m.Name)
	set("vermagic", m.VerMagic)
	if m.Livepatch {
		set("livepatch", "Y")
	}
	if m.Stacked {
		set("fake.stacked", "Y")
	}
	for _, o := range m.Objects {
		set("fake.object", o.Name+":"+strings.Join(o.Functions, ","))
	}
	if m.Signed {
		b.WriteString(signatureMagic)
	}
	return b.Bytes()
}

// ReadModule finds the .modinfo strings in a file, a fake's or a real module's. ok
// is false when there is no name: then it is no module.
func ReadModule(file []byte) (m Module, ok bool) {
	m.Signed = bytes.HasSuffix(file, []byte(signatureMagic))
	for s := range bytes.SplitSeq(file, []byte{0}) {
		key, value, _ := strings.Cut(string(s), "=")
		switch key {
		case "name":
			m.Name = value
		case "vermagic":
			m.VerMagic = value
		case "livepatch":
			m.Livepatch = true
		case "fake.stacked":
			m.Stacked = true
		case "fake.object":
			object, functions, _ := strings.Cut(value, ":")
			m.Objects = append(m.Objects, livepatch.Object{Name: object, Functions: strings.Split(functions, ",")})
		}
	}
	return m, livepatch.ValidModuleName(m.Name)
}
