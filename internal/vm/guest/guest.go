// Package guest is the other half of package vm: the program that runs inside a
// virtual machine and does there what the host asks for, and the messages between
// the two.
//
// The messages are JSON, one to a line, over a virtio serial port. A line that is
// no message is skipped, so that both sides find back into step after a reboot cut
// one off in the middle. The program survives nothing; it is started by each boot
// and says Hello with the boot's id, which is how the host tells boots apart.
package guest

import "time"

// PortName names the virtio serial port of the messages.
const PortName = "org.livepatch.guest"

// MaxLine bounds one message, in bytes.
const MaxLine = 16 << 20

// MaxOutput bounds what is kept of each output stream of a command, in bytes; what
// comes later is dropped.
const MaxOutput = 4 << 20

// ChunkSize is how many bytes of a file travel in one message.
const ChunkSize = 256 << 10

// Request is what the host asks for: exactly one of the pointers is set.
type Request struct {
	// ID is repeated in the Response.
	ID   uint64 `json:"id"`
	Run  *Run   `json:"run,omitempty"`
	Put  *Put   `json:"put,omitempty"`
	Get  *Get   `json:"get,omitempty"`
	Kill *Kill  `json:"kill,omitempty"`
}

// Run asks to run a command to its end.
type Run struct {
	// Argv is the program, looked up in PATH, and its arguments.
	Argv  []string `json:"argv"`
	Stdin []byte   `json:"stdin,omitempty"`
	// Env is added to the program's own environment, "NAME=value".
	Env []string `json:"env,omitempty"`
	Dir string   `json:"dir,omitempty"`
	// Timeout ends the command, with all its children; 0 is a minute.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Put asks to write a part of a file. The first part, at offset 0, truncates.
type Put struct {
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"`
	Offset int64  `json:"offset"`
	Data   []byte `json:"data"`
}

// Get asks for a part of a file, at most ChunkSize bytes.
type Get struct {
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
}

// Kill asks to end the command of an earlier request.
type Kill struct {
	ID uint64 `json:"id"`
}

// Response is the answer to the Request with the same ID, or, with ID 0, the
// first word of a boot.
type Response struct {
	ID    uint64  `json:"id"`
	Hello *Hello  `json:"hello,omitempty"`
	Exit  *Exit   `json:"exit,omitempty"`
	Data  []byte  `json:"data,omitempty"`
	EOF   bool    `json:"eof,omitempty"`
	Error *string `json:"error,omitempty"`
}

// Hello is what the guest says when it starts.
type Hello struct {
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
	// Uptime is the time since the kernel started.
	Uptime  time.Duration `json:"uptime"`
	Release string        `json:"release"`
}

// Exit is how a command ended.
type Exit struct {
	// Code is the exit code; -1 when a signal ended it.
	Code   int    `json:"code"`
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	// TimedOut tells that Run.Timeout or a Kill ended it.
	TimedOut bool `json:"timed_out,omitempty"`
	// Duration is how long it ran, by the guest's clock.
	Duration time.Duration `json:"duration"`
}
