package elfobj_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livepatch"
	"livepatch/internal/elfobj"
)

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readModule(b []byte) (livepatch.Module, error) {
	return elfobj.ReadModule(bytes.NewReader(b), int64(len(b)))
}

func TestReadModule(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"two_objects.ko", "stripped.ko"} {
		m, err := readModule(fixture(t, name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if m.Name != "two_objects" || !strings.HasPrefix(m.VerMagic, "6.1.0-47-cloud-amd64 ") || !m.Replace || m.Signed {
			t.Errorf("%s: got %+v", name, m)
		}
		want := []livepatch.Object{
			{Name: "vmlinux", Functions: []string{"cmdline_proc_show"}},
			{Name: "loop", Functions: []string{"loop_timeout", "loop_probe"}},
		}
		if len(m.Objects) != len(want) {
			t.Fatalf("%s: objects %+v, want %+v", name, m.Objects, want)
		}
		for i, o := range want {
			if m.Objects[i].Name != o.Name || strings.Join(m.Objects[i].Functions, " ") != strings.Join(o.Functions, " ") {
				t.Errorf("%s: object %+v, want %+v", name, m.Objects[i], o)
			}
		}
	}
}

func TestParsePatchKeepsPosition(t *testing.T) {
	t.Parallel()
	p, err := elfobj.ParsePatch(fixture(t, "two_objects.ko"))
	if err != nil {
		t.Fatal(err)
	}
	fn := p.Objects[1].Functions[0]
	if fn.Position != 2 || fn.Size == 0 {
		t.Errorf("loop_timeout is %+v, want position 2 and a size", fn)
	}
}

// kpatch-build and klp-build fill struct klp_patch when the module is loaded; what
// they replace is in tables of their own.
func TestReadModuleOfOtherBuilders(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"kpatch.ko", "klp_build.ko"} {
		p, err := elfobj.ParsePatch(fixture(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(p.Objects) != 2 || p.Objects[0].Name != "vmlinux" || p.Objects[1].Name != "fuse" || !p.Module.Replace {
			t.Errorf("%s: read %+v", name, p)
			continue
		}
		if a, b := p.Objects[0].Functions[0], p.Objects[1].Functions[0]; a.Name != "tcp_v4_rcv" || a.Position != 0 || b.Name != "fuse_init" || b.Position != 3 {
			t.Errorf("%s: functions %+v and %+v", name, a, b)
		}
	}
}

func TestReadModuleSeesSignature(t *testing.T) {
	t.Parallel()
	b := fixture(t, "two_objects.ko")
	b = append(b, 0x30, 0x01, 0x00)                           // the message
	b = append(b, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3)         // struct module_signature
	b = append(b, []byte("~Module signature appended~\n")...) // the magic
	if m, err := readModule(b); err != nil || !m.Signed {
		t.Errorf("signed = %v, %v; want true", m.Signed, err)
	}
}

func TestReadModuleRefuses(t *testing.T) {
	t.Parallel()
	good := fixture(t, "two_objects.ko")
	tests := []struct {
		name string
		b    []byte
		says string
	}{
		{"plain module", fixture(t, "plain.ko"), "not a livepatch"},
		{"text", []byte(strings.Repeat("hello ", 100)), "no kernel module"},
		{"empty", nil, "0 bytes"},
		{"cut short", good[:len(good)/2], "incomplete"},
		{"headers only", good[:64], "incomplete"},
	}
	for _, tt := range tests {
		_, err := readModule(tt.b)
		if livepatch.CodeOf(err) != livepatch.CodeNotLivepatch || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v (%s), want one of code not-livepatch that says %q", tt.name, err, livepatch.CodeOf(err), tt.says)
		}
	}
}

// Whatever the bytes are: an error or a module whose claims hold, never a panic.
func FuzzReadModule(f *testing.F) {
	for _, name := range []string{"two_objects.ko", "stripped.ko", "plain.ko"} {
		f.Add(fixture(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readModule(b)
		if err != nil {
			return
		}
		if !livepatch.ValidModuleName(m.Name) || m.Size != int64(len(b)) || len(m.Objects) == 0 {
			t.Errorf("accepted a module with name %q, size %d of %d, %d objects", m.Name, m.Size, len(b), len(m.Objects))
		}
		for _, o := range m.Objects {
			if o.Name == "" || len(o.Functions) == 0 {
				t.Errorf("object %+v has no name or patches nothing", o)
			}
		}
	})
}

func TestLayouts(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../elfdiff/testdata/refused.old.o")
	if err != nil {
		t.Fatal(err)
	}
	all, err := elfobj.Layouts(b)
	if err != nil || all["layout"].String() != "8 a@0.0 c@4.0" {
		t.Errorf("struct layout is %q, %v", all["layout"], err)
	}
	if _, err := elfobj.Layouts(b[:len(b)/2]); err == nil {
		t.Error("half an object is read without an error")
	}
}
