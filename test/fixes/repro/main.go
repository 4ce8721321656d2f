// Command repro provokes bugs that real fixes close, inside a virtual machine, and
// prints what the kernel did. The line differs between the kernel with the bug and
// the one without.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	out, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "repro:", err)
		os.Exit(1)
	}
	fmt.Println(out)
}

func run(args []string) (string, error) {
	if len(args) != 1 {
		return "", fmt.Errorf("name one bug")
	}
	switch args[0] {
	case "vsock":
		return vsock()
	case "comedi_test":
		return comedi()
	case "ifb":
		return ifb()
	case "special":
		return special()
	}
	return "", fmt.Errorf("no bug %q is known", args[0])
}

// special reads what own/special_sections.patch makes the kernel print, after running
// code that was fixed up by alternatives, paravirt, the exception table and static
// keys, and that counts in per-CPU variables of the livepatch.
func special() (string, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	before, _, ok := strings.Cut(string(b), " more ")
	if !ok {
		before = "as it was"
	}
	return before, nil
}

// vsock asks for a least buffer size above the greatest: include/uapi/linux/vm_sockets.h.
// The fixed kernel keeps the size at the maximum.
func vsock() (string, error) {
	const afVsock, bufferSize, minSize, maxSize = 40, 0, 1, 2
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM, 0)
	if err != nil {
		return "", fmt.Errorf("open socket: %w", err)
	}
	defer syscall.Close(fd) //nolint:errcheck // the process ends
	set := func(option int, v uint64) error {
		_, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), afVsock, uintptr(option), uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
		if errno != 0 {
			return fmt.Errorf("set option %d: %w", option, errno)
		}
		return nil
	}
	if err := set(maxSize, 1024); err != nil {
		return "", err
	}
	if err := set(minSize, 4096); err != nil {
		return "", err
	}
	var got uint64
	size := uint32(unsafe.Sizeof(got))
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), afVsock, bufferSize, uintptr(unsafe.Pointer(&got)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return "", fmt.Errorf("get buffer size: %w", errno)
	}
	return fmt.Sprintf("maximum 1024, buffer %d", got), nil
}

// comediCmd is struct comedi_cmd of include/uapi/linux/comedi.h.
type comediCmd struct {
	Subdev, Flags           uint32
	StartSrc, StartArg      uint32
	ScanBeginSrc, ScanBegin uint32
	ConvertSrc, Convert     uint32
	ScanEndSrc, ScanEnd     uint32
	StopSrc, Stop           uint32
	Chanlist                *uint32
	ChanlistLen             uint32
	Data                    uintptr
	DataLen                 uint32
}

// comedi tests a command whose scans would begin on two events at once. The fixed
// driver finds the fault in step 2 of the test.
func comedi() (string, error) {
	const trigNow, trigFollow, trigTimer, trigCount = 0x2, 0x4, 0x10, 0x20
	f, err := os.OpenFile("/dev/comedi0", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // nothing is written
	channel := uint32(0)
	cmd := comediCmd{
		StartSrc: trigNow, ScanBeginSrc: trigFollow | trigTimer, ScanBegin: 1_000_000, ConvertSrc: trigTimer, Convert: 1_000_000,
		ScanEndSrc: trigCount, ScanEnd: 1, StopSrc: trigCount, Stop: 1, Chanlist: &channel, ChanlistLen: 1,
	}
	request := uintptr(2<<30 | unsafe.Sizeof(cmd)<<16 | 'd'<<8 | 10) // COMEDI_CMDTEST
	step, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&cmd)))
	if errno != 0 {
		return "", fmt.Errorf("test command: %w", errno)
	}
	return fmt.Sprintf("fault found in step %d", step), nil
}
