package builder

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"livepatch"
)

func TestIncludeIndexFindsUsersThroughOthers(t *testing.T) {
	t.Parallel()
	tree := &Tree{Dir: t.TempDir()}
	for name, text := range map[string]string{
		"include/net/ping.h":   "#include <linux/types.h>\n",
		"include/net/inet.h":   "# include <net/ping.h>\n",
		"net/ipv4/icmp.c":      "#include <net/inet.h>\n",
		"net/ipv4/local.c":     "#include \"ping.h\"\n",
		"net/ipv4/other.c":     "#include <net/notping.h>\n",
		"arch/arm/net/ping.c":  "#include <net/ping.h>\n",
		"Documentation/ping.c": "#include <net/ping.h>\n",
	} {
		write(t, filepath.Join(tree.Dir, name), text)
	}
	for range 2 { // the second time from the file that keeps it
		index, err := tree.includes()
		if err != nil {
			t.Fatal(err)
		}
		got := index.users([]string{"include/net/ping.h"})
		want := []string{"include/net/inet.h", "net/ipv4/icmp.c", "net/ipv4/local.c"}
		if !slices.Equal(got, want) {
			t.Errorf("users are %q, want %q", got, want)
		}
	}
}

const savedModule = `cmd_fs/fuse/control.o := gcc -Wp,-MMD,fs/fuse/.control.o.d -g  -DMODULE  -DKBUILD_BASENAME='"control"' -D__KBUILD_MODNAME=kmod_fuse -c -o fs/fuse/control.o fs/fuse/control.c   ; ./objtool --module fs/fuse/control.o

source_fs/fuse/control.o := fs/fuse/control.c
`

func TestCommandIsRunWithOtherPaths(t *testing.T) {
	t.Parallel()
	var ran string
	tree := &Tree{Dir: t.TempDir(), Run: func(_ context.Context, dir, name string, args ...string) ([]byte, error) {
		ran = strings.Join(append([]string{dir, name}, args...), " ")
		return nil, nil
	}}
	write(t, filepath.Join(tree.Dir, "fs/fuse/.control.o.cmd"), savedModule)
	c, err := tree.command("fs/fuse/control.c")
	if err != nil {
		t.Fatal(err)
	}
	if c.Module() != "fuse" {
		t.Errorf("module is %q, want fuse", c.Module())
	}
	if err := tree.compile(t.Context(), "/shadow", c, c.Source, "/work/new.o", "-fx"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"/shadow sh -ec ", "-fx -c -o /work/new.o fs/fuse/control.c", "--module /work/new.o", "-Wp,-MMD,/work/new.o.d"} {
		if !strings.Contains(ran, want) {
			t.Errorf("ran %q, which lacks %q", ran, want)
		}
	}
}

func TestCompilerMustBeTheKernels(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "config")
	write(t, config, "CONFIG_X=y\nCONFIG_CC_VERSION_TEXT=\"gcc-12 (Debian 12.2.0-14) 12.2.0\"\n")
	says := func(line string) Runner {
		return func(_ context.Context, _, name string, _ ...string) ([]byte, error) {
			if name == "gcc-12" {
				return nil, os.ErrNotExist
			}
			return []byte(line + "\nCopyright\n"), nil
		}
	}
	if cc, err := compiler(t.Context(), says("gcc (Debian 12.2.0-14) 12.2.0"), config); err != nil || cc != "gcc" {
		t.Errorf("compiler %q, %v; want gcc", cc, err)
	}
	if _, err := compiler(t.Context(), says("gcc (Debian 13.1.0) 13.1.0"), config); livepatch.CodeOf(err) != livepatch.CodeUnsupported {
		t.Errorf("another version: %v, want an error of code unsupported", err)
	}
}

func TestCheckConfigAllowsToolsOnly(t *testing.T) {
	t.Parallel()
	tree := &Tree{Dir: t.TempDir()}
	write(t, filepath.Join(tree.Dir, ".config"), "CONFIG_A=y\nCONFIG_CC_VERSION_TEXT=\"gcc\"\n")
	if err := tree.checkConfig([]byte("CONFIG_A=y\nCONFIG_CC_VERSION_TEXT=\"gcc-12\"\nCONFIG_PAHOLE_VERSION=124\n")); err != nil {
		t.Errorf("tools differ: %v", err)
	}
	if err := tree.checkConfig([]byte("CONFIG_A=y\nCONFIG_B=m\n")); err == nil || !strings.Contains(err.Error(), "CONFIG_B=m") {
		t.Errorf("error %v, want one that names CONFIG_B=m", err)
	}
}

func TestOfflineSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	p := &Packages{Dir: t.TempDir(), Offline: true, Run: func(context.Context, string, string, ...string) ([]byte, error) {
		t.Error("a program runs although nothing is to be fetched")
		return nil, os.ErrNotExist
	}}
	_, err := p.Kernel(t.Context(), "6.1.0-47-cloud-amd64")
	if livepatch.CodeOf(err) != livepatch.CodeNotFound || !strings.Contains(err.Error(), "--offline") {
		t.Errorf("error %v, want not-found that mentions --offline", err)
	}
	if _, err := p.Kernel(t.Context(), "../etc"); livepatch.CodeOf(err) != livepatch.CodeInvalid {
		t.Errorf("error %v, want invalid", err)
	}
}

func TestCheckSupported(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		"CONFIG_LIVEPATCH=y\n# CONFIG_X86_KERNEL_IBT is not set\n": "",
		"CONFIG_LIVEPATCH=y\nCONFIG_X86_KERNEL_IBT=y\n":            "CONFIG_X86_KERNEL_IBT",
		"# CONFIG_LIVEPATCH is not set\n":                          "without CONFIG_LIVEPATCH",
	} {
		config := filepath.Join(t.TempDir(), "config")
		write(t, config, text)
		err := checkSupported(config)
		if says == "" && err != nil {
			t.Errorf("%q: %v, want none", text, err)
		}
		if says != "" && (livepatch.CodeOf(err) != livepatch.CodeUnsupported || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: error %v, want unsupported that says %q", text, err, says)
		}
	}
}
