// Package localapi is the contract of the daemon's unix socket: its wire types,
// its Go client, and the documents that people and programs read from it. The
// daemon that answers is in package agent.
package localapi

import (
	"time"

	"livepatch"
)

// SocketPath is where livepatchd listens. Everybody may connect; who may change
// something is decided by the peer's credentials.
const SocketPath = "/run/livepatch/livepatchd.sock"

// EnableRequest is the body of PUT /v1/enable; root only.
type EnableRequest struct {
	Token string `json:"token"`
	// Server overrides the configured remote-server and is stored in its place.
	Server string `json:"server,omitempty"`
	// Trust is the expected fingerprint of the stream's first root,
	// "sha256:" and 64 hex digits.
	Trust string `json:"trust,omitempty"`
}

// EnableResponse is the answer of PUT /v1/enable.
type EnableResponse struct {
	MachineID string         `json:"machine_id"`
	Account   string         `json:"account"`
	Tier      livepatch.Tier `json:"tier"`
	// Trusted tells how the first root came to be trusted: "package",
	// "fingerprint" or "tls".
	Trusted string `json:"trusted"`
}

// Status is the answer of GET /v1/status, and what `livepatch status --format
// json` prints. Names and order are those of the Canonical client; the keys after
// Tier are ours. Between two calls with nothing changed only LastCheck and Uptime
// differ.
type Status struct {
	ClientVersion string    `json:"Client-Version"`
	MachineID     string    `json:"Machine-Id"`
	Architecture  string    `json:"Architecture"`
	CPUModel      string    `json:"CPU-Model"`
	LastCheck     time.Time `json:"Last-Check"`
	BootTime      time.Time `json:"Boot-Time"`
	// Uptime is in seconds, decimal.
	Uptime string         `json:"Uptime"`
	Status []KernelStatus `json:"Status"`
	Tier   livepatch.Tier `json:"tier"`
	// ServerCheckIn is "succeeded" or "failed: why".
	ServerCheckIn string `json:"Server-Check-In"`
	// Trusted is how the first root came to be trusted; see EnableResponse.
	Trusted string `json:"Trusted"`
	// Outstanding are fixes known for the kernel that are not in force.
	Outstanding []Fix `json:"Outstanding"`
	// Problems is what went wrong and what to do, empty when nothing did.
	Problems []Problem `json:"Problems"`
}

// KernelStatus is the state of one kernel; the running one comes first.
type KernelStatus struct {
	Kernel              string              `json:"Kernel"`
	Running             bool                `json:"Running"`
	Livepatch           PatchStatus         `json:"Livepatch"`
	Supported           livepatch.Supported `json:"Supported"`
	UpgradeRequiredDate string              `json:"UpgradeRequiredDate,omitempty"`
}

// PatchStatus is what the livepatch of a kernel does.
type PatchStatus struct {
	CheckState livepatch.CheckState `json:"CheckState"`
	State      livepatch.PatchState `json:"State"`
	// Version is "" when no livepatch is loaded.
	Version livepatch.Version `json:"Version"`
	Fixes   []Fix             `json:"Fixes,omitempty"`
}

// Fix is one vulnerability in a status. Name is lower case, "cve-2026-1234".
type Fix struct {
	Name        string `json:"Name"`
	Description string `json:"Description"`
	Bug         string `json:"Bug"`
	Patched     bool   `json:"Patched"`
}

// Problem is one thing that went wrong.
type Problem struct {
	Code    livepatch.Code `json:"Code"`
	Message string         `json:"Message"`
	Since   time.Time      `json:"Since"`
}

// Check is one line of `livepatch doctor`.
type Check struct {
	// Name is short, "build id", "CONFIG_LIVEPATCH".
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Found is what was seen.
	Found string `json:"found"`
	// Remedy is what to do when it is not OK.
	Remedy string `json:"remedy,omitempty"`
}

// Doctor is the answer of GET /v1/doctor.
type Doctor struct {
	Checks []Check `json:"checks"`
}

// RefreshRequest is the body of POST /v1/refresh; root only. It may be missing.
type RefreshRequest struct {
	// RetrySuspect clears what the boot guard holds back.
	RetrySuspect bool `json:"retry_suspect,omitempty"`
}

// RefreshResponse is the answer of POST /v1/refresh.
type RefreshResponse struct {
	// Message says what the check found and did.
	Message string `json:"message"`
	Status  Status `json:"status"`
}
