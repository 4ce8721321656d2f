package vm

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestCommandLine(t *testing.T) {
	t.Parallel()
	args := commandLine(withDefaults(Config{
		Name: "m", Kernel: "/boot/k", Initramfs: "/boot/i", Memory: 512,
		Devices: []Device{Disk{Path: "/a,b.qcow2", Format: "qcow2"}, UserNet{}},
		Boot:    []BootOption{RebootOnPanic(1500 * time.Millisecond), RootDevice("/dev/vda"), KernelArg("quiet")},
	}), "/s")
	line := strings.Join(args, " ")
	for _, want := range []string{
		"-accel tcg", "-m 512", "-smp 2", "-kernel /boot/k", "-initrd /boot/i",
		"file=/a,,b.qcow2", "format=qcow2", "-netdev user,", "path=/s",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %s", want, line)
		}
	}
	if got := args[slices.Index(args, "-append")+1]; got != "console=ttyS0 panic=1 livepatch.root=/dev/vda quiet" {
		t.Errorf("kernel command line %q", got)
	}
	if strings.Contains(line, "-no-reboot") {
		t.Error("a machine that ends when it reboots")
	}
}

func TestConsoleCountsPanics(t *testing.T) {
	t.Parallel()
	c, err := newConsole(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	text := "[ 1.0] Linux version 6.1\r\n[ 2.0] Kernel panic - not syncing: one\r\n[ 0.0] again\r\nKernel panic - not syncing: two\r\n"
	for i := range len(text) { // byte by byte, as a serial line does
		if _, err := c.Write([]byte{text[i]}); err != nil {
			t.Fatal(err)
		}
	}
	if c.panics() != 2 {
		t.Errorf("%d panics, want 2", c.panics())
	}
	select {
	case <-c.panicked:
	default:
		t.Error("nobody is told of the panic")
	}
	if strings.Contains(c.text(), "\r") || !saidAnything(c.text()) {
		t.Errorf("console %q", c.text())
	}
}

func TestWhoseFault(t *testing.T) {
	t.Parallel()
	silent := &VM{cfg: Config{Name: "m"}, console: &console{}}
	var infra *InfraError
	if err := silent.bootError("ended"); !errors.As(err, &infra) {
		t.Errorf("a machine that never said anything: %v", err)
	}
	silent.console.buf.WriteString("Linux version 6.1\nfoo: bar\n")
	var boot *BootError
	if err := silent.bootError("hung"); !errors.As(err, &boot) || !strings.Contains(err.Error(), "foo: bar") {
		t.Errorf("a kernel that hung: %v", err)
	}
}

func TestInitramfs(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := WriteInitramfs(&out, []File{
		{Path: "/init", Mode: 0o755, Content: []byte("program")},
		{Path: "/a/b/file", Mode: 0o644, Content: []byte("x")},
		{Path: "/a/b/link", Mode: fs.ModeSymlink | 0o777, Content: []byte("file")},
		{Path: "/a", Mode: fs.ModeDir | 0o700},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, out.Bytes())
	want := []string{
		"init 100755 program", "a 40755 ", "a/b 40755 ", "a/b/file 100644 x", "a/b/link 120777 file",
	}
	if !slices.Equal(got, want) {
		t.Errorf("archive has\n%q, want\n%q", got, want)
	}
}

// list reads a newc archive: a header of 110 bytes, name and content, each padded to
// a multiple of four.
func list(t *testing.T, b []byte) []string {
	t.Helper()
	var entries []string
	pos := 0
	number := func(field int) int {
		n, err := strconv.ParseInt(string(b[pos+6+8*field:pos+14+8*field]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return int(n)
	}
	round := func(n int) int { return (n + 3) &^ 3 }
	for {
		if string(b[pos:pos+6]) != "070701" {
			t.Fatalf("no header at %d", pos)
		}
		mode, size, nameSize := number(1), number(6), number(11)
		name := string(b[pos+110 : pos+110+nameSize-1])
		content := round(pos + 110 + nameSize)
		if name == "TRAILER!!!" {
			return entries
		}
		entries = append(entries, name+" "+strconv.FormatInt(int64(mode), 8)+" "+string(b[content:content+size]))
		pos = round(content + size)
	}
}
