package kernel_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"livepatch/internal/kernel"
)

func TestPeerUID(t *testing.T) {
	t.Parallel()
	// A short folder: the path of a unix socket has 107 bytes at most.
	dir, err := os.MkdirTemp("", "lp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	uid, err := kernel.PeerUID(server)
	if err != nil || int(uid) != os.Geteuid() {
		t.Errorf("PeerUID = %d, %v; want our own, %d", uid, err, os.Geteuid())
	}
	server.Close()
	if _, err := kernel.PeerUID(server); err == nil {
		t.Error("PeerUID of a closed connection succeeds")
	}
}

// The kernel refuses what is no module and what is not loaded, as root or not; both
// come back as errors that a caller can look at.
func TestSyscallsKeepTheErrno(t *testing.T) {
	t.Parallel()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	real := kernel.Syscalls()
	var errno syscall.Errno
	if err := real.Load(f, ""); !errors.As(err, &errno) {
		t.Errorf("Load of nothing = %v, want an errno", err)
	}
	if err := real.Unload("no_such_module_of_ours"); !errors.As(err, &errno) {
		t.Errorf("Unload of nothing = %v, want an errno", err)
	}
	path := filepath.Join(t.TempDir(), "enabled")
	if err := real.SetEnabled(path, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SetEnabled = %v, want it to miss the file and not make it", err)
	}
	if err := os.WriteFile(path, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := real.SetEnabled(path, false); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "0\n" {
		t.Errorf("enabled reads %q, want 0", b)
	}
}
