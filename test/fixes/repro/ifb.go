package main

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"
)

// Attribute numbers of include/uapi/linux/if_link.h, in host order like everything in
// route netlink.
const (
	iflaIfname      = 3
	iflaLinkinfo    = 18
	iflaNumTxQueues = 31
	iflaNumRxQueues = 32
	iflaInfoKind    = 1
)

func attribute(typ uint16, value []byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint16(nil, uint16(4+len(value)))
	b = append(ne.AppendUint16(b, typ), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// ifb makes a device with more transmit than receive queues and asks how many
// statistics it has. The buggy driver counts both kinds of queues, and reads beyond
// its array when there are more receive queues; the fixed one counts the transmit
// queues twice.
func ifb() (string, error) {
	const name = "ifbrepro"
	if err := addLink(name); err != nil {
		return "", fmt.Errorf("make device: %w", err)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return "", err
	}
	defer syscall.Close(fd) //nolint:errcheck // the process ends
	// struct ethtool_sset_info for ETH_SS_STATS (1): include/uapi/linux/ethtool.h.
	const getStringSets, siocEthtool, stats = 0x37, 0x8946, 1
	info := struct {
		Cmd, Reserved uint32
		Mask          uint64
		Count         uint32
	}{Cmd: getStringSets, Mask: 1 << stats}
	var req struct {
		Name [16]byte
		Data unsafe.Pointer
		_    [16]byte
	}
	copy(req.Name[:], name)
	req.Data = unsafe.Pointer(&info)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), siocEthtool, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return "", fmt.Errorf("ask for statistics: %w", errno)
	}
	return fmt.Sprintf("1 receive and 4 transmit queues have %d statistics", info.Count), nil
}

// addLink makes the device unless it is there.
func addLink(name string) error {
	ne := binary.NativeEndian
	body := make([]byte, 16) // struct ifinfomsg
	body = append(body, attribute(iflaIfname, append([]byte(name), 0))...)
	body = append(body, attribute(iflaNumTxQueues, ne.AppendUint32(nil, 4))...)
	body = append(body, attribute(iflaNumRxQueues, ne.AppendUint32(nil, 1))...)
	body = append(body, attribute(iflaLinkinfo, attribute(iflaInfoKind, []byte("ifb\x00")))...)
	msg := ne.AppendUint32(nil, uint32(16+len(body)))
	msg = ne.AppendUint16(msg, syscall.RTM_NEWLINK)
	msg = ne.AppendUint16(msg, syscall.NLM_F_REQUEST|syscall.NLM_F_ACK|syscall.NLM_F_CREATE|syscall.NLM_F_EXCL)
	msg = append(append(msg, make([]byte, 8)...), body...)

	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW, syscall.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer syscall.Close(fd) //nolint:errcheck // the process ends
	if err := syscall.Sendto(fd, msg, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 {
		return fmt.Errorf("the kernel answered %d bytes", n)
	}
	if errno := syscall.Errno(-int32(ne.Uint32(answer[16:]))); errno != 0 && errno != syscall.EEXIST {
		return errno
	}
	return nil
}
