package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Syscalls returns the Loader that changes the running kernel.
func Syscalls() Loader { return syscalls{} }

type syscalls struct{}

func (syscalls) Load(f *os.File, params string) error {
	if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil {
		return fmt.Errorf("finit_module: %w", err)
	}
	return nil
}

func (syscalls) Unload(name string) error {
	if err := unix.DeleteModule(name, unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("delete_module: %w", err)
	}
	return nil
}

func (syscalls) SetEnabled(path string, on bool) error {
	value := []byte("0\n")
	if on {
		value = []byte("1\n")
	}
	// Not os.WriteFile: the attribute must neither be created nor truncated.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(value)
	return errors.Join(err, f.Close())
}

// PeerUID returns the user at the other end of a unix socket (SO_PEERCRED,
// unix(7)): who connected, as the kernel recorded it then.
func PeerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return 0, fmt.Errorf("peer credentials: %w", err)
	}
	return cred.Uid, nil
}

// maxLog bounds how much of the kernel log is read at once, in bytes. The buffer
// is 2^CONFIG_LOG_BUF_SHIFT, 128 KB to 2 MB on distribution kernels.
const maxLog = 16 << 20

// readLog returns what a kernel log device holds now, without waiting for more.
//
// /dev/kmsg gives one record a read, EAGAIN at the end and EPIPE when records
// were overwritten meanwhile (Documentation/ABI/testing/dev-kmsg). It is read by
// plain system calls because os.File would park at EAGAIN until the next record.
// A regular file works as well: it ends.
func readLog(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var log bytes.Buffer
	record := make([]byte, 16<<10)
	for log.Len() < maxLog {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return log.Bytes(), nil
		case err != nil:
			return log.Bytes(), &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return log.Bytes(), nil
		}
		log.Write(record[:n])
	}
	return log.Bytes(), nil
}
