// Package api is the contract of the server's /v1 API: its wire types and its Go
// client. The server that answers is in package server.
package api

import (
	"time"

	"livepatch"
)

// Info is the answer of GET /v1/info, which everybody may ask.
type Info struct {
	// Version is the server's version.
	Version string `json:"version"`
	// Time is the server's clock.
	Time time.Time `json:"time"`
	// Trust is the fingerprint of the stream's first root, "sha256:" and 64 hex
	// digits; empty while the stream has no root yet.
	Trust string `json:"trust,omitempty"`
}

// EnrolRequest is the body of POST /v1/machines. The token in it is the
// authorisation. The machine chooses its credential itself, so that a repeated
// request after a lost answer enrols the same machine again and not another one.
type EnrolRequest struct {
	Token string `json:"token"`
	// MachineID is the content of /etc/machine-id, 32 hex digits.
	MachineID string `json:"machine_id"`
	// Credential is 64 random hex digits; the server stores its hash only.
	Credential   string           `json:"credential"`
	Hostname     string           `json:"hostname,omitempty"`
	Kernel       livepatch.Kernel `json:"kernel"`
	AgentVersion string           `json:"agent_version"`
}

// EnrolResponse is the answer: 201 for a new machine, 200 for one known already.
type EnrolResponse struct {
	// ID is the server's name of the machine.
	ID      string         `json:"id"`
	Account string         `json:"account"`
	Plan    string         `json:"plan"`
	Tier    livepatch.Tier `json:"tier"`
}

// CheckInRequest is the body of POST /v1/check-in: the question what to run, and
// the report of what happened.
type CheckInRequest struct {
	Kernel livepatch.Kernel `json:"kernel"`
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID       string                  `json:"boot_id"`
	BootTime     time.Time               `json:"boot_time"`
	AgentVersion string                  `json:"agent_version"`
	CheckState   livepatch.CheckState    `json:"check_state"`
	PatchState   livepatch.PatchState    `json:"patch_state"`
	Loaded       []livepatch.LoadedPatch `json:"loaded"`
	// Suspects are versions that the boot guard will not load again.
	Suspects []livepatch.Version `json:"suspects,omitempty"`
	// Problem is what stands in the way on this machine, empty when nothing does.
	Problem string `json:"problem,omitempty"`
	// Hardware is the system's vendor and model, Virt the hypervisor below it ("kvm",
	// "none"); at most 64 bytes each, empty when not known. Machines are compared with
	// machines of their sort.
	Hardware string `json:"hardware,omitempty"`
	Virt     string `json:"virt,omitempty"`
	// Retry tells that a person on the machine asked for this check: what failed
	// there is offered again at once. RetrySuspect: so is what is suspected of a crash.
	Retry        bool `json:"retry,omitempty"`
	RetrySuspect bool `json:"retry_suspect,omitempty"`
	// Reports not yet acknowledged, oldest first, at most 32.
	Reports []livepatch.Report `json:"reports,omitempty"`
}

// CheckInResponse is the answer to a check-in.
type CheckInResponse struct {
	// Time is the server's clock.
	Time time.Time `json:"time"`
	// Grant is what the machine may do now; nil when it is to stay as it is.
	Grant *livepatch.Grant `json:"grant,omitempty"`
	// Reason is a sentence why there is no grant, empty when nothing is pending.
	Reason string `json:"reason,omitempty"`
	// Acknowledged are the ids of the reports that are now stored.
	Acknowledged []string            `json:"acknowledged,omitempty"`
	Supported    livepatch.Supported `json:"supported"`
	// UpgradeRequiredDate is YYYY-MM-DD or empty.
	UpgradeRequiredDate string         `json:"upgrade_required_date,omitempty"`
	Tier                livepatch.Tier `json:"tier"`
	// Outstanding are fixes known for this kernel that the machine does not have.
	Outstanding []livepatch.Fix `json:"outstanding,omitempty"`
	// NextSeconds is when to check in again without an event; 60 to 86400.
	NextSeconds int `json:"next_seconds"`
}

// Event is one server-sent event of GET /v1/events. Its SSE event name is Kind.
type Event struct {
	Kind EventKind `json:"kind"`
}

// EventKind says what to do.
type EventKind string

// EventCheck asks the machine to check in at once: something changed for it.
const EventCheck EventKind = "check"

// Account owns machines through tokens.
type Account struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Plan string `json:"plan"`
	// Machines is how many are enrolled, Limit how many may be.
	Machines int       `json:"machines"`
	Limit    int       `json:"limit"`
	Created  time.Time `json:"created"`
}

// NewAccount is the body of POST /v1/accounts.
type NewAccount struct {
	Name string `json:"name"`
	// Plan is community (default), essential, standard or advanced.
	Plan string `json:"plan,omitempty"`
	// Limit overrides the plan's number of machines; 0 keeps it.
	Limit int `json:"limit,omitempty"`
}

// Token is an account token without its secret.
type Token struct {
	ID string `json:"id"`
	// Account is the account's name.
	Account string `json:"account"`
	Name    string `json:"name,omitempty"`
	// Uses is how many machines enrolled with it, MaxUses how many may; 0 is
	// without limit of its own.
	Uses    int        `json:"uses"`
	MaxUses int        `json:"max_uses,omitempty"`
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
	Revoked *time.Time `json:"revoked,omitempty"`
}

// NewToken is the body of POST /v1/tokens.
type NewToken struct {
	// Account is an account's id or name.
	Account string     `json:"account"`
	Name    string     `json:"name,omitempty"`
	MaxUses int        `json:"max_uses,omitempty"`
	Expires *time.Time `json:"expires,omitempty"`
}

// CreatedToken carries the secret, this one time.
type CreatedToken struct {
	Token
	Secret string `json:"secret"`
	// Enable is the command a machine's owner types, server and trust included.
	Enable string `json:"enable"`
}

// Machine is one enrolled host as operators see it.
type Machine struct {
	ID        string `json:"id"`
	MachineID string `json:"machine_id"`
	// Account is the account's name.
	Account      string                  `json:"account"`
	Hostname     string                  `json:"hostname,omitempty"`
	Kernel       livepatch.Kernel        `json:"kernel"`
	Tier         livepatch.Tier          `json:"tier"`
	PatchState   livepatch.PatchState    `json:"patch_state"`
	CheckState   livepatch.CheckState    `json:"check_state"`
	Version      livepatch.Version       `json:"version,omitzero"`
	Loaded       []livepatch.LoadedPatch `json:"loaded"`
	Suspects     []livepatch.Version     `json:"suspects,omitempty"`
	Problem      string                  `json:"problem,omitempty"`
	BootID       string                  `json:"boot_id,omitempty"`
	BootTime     time.Time               `json:"boot_time,omitzero"`
	Enrolled     time.Time               `json:"enrolled"`
	LastSeen     time.Time               `json:"last_seen"`
	AgentVersion string                  `json:"agent_version,omitempty"`
	// Hardware and Virt are as in CheckInRequest.
	Hardware string `json:"hardware,omitempty"`
	Virt     string `json:"virt,omitempty"`
	// Reports are the latest ones, newest first; only in GET /v1/machines/{id}.
	Reports []livepatch.Report `json:"reports,omitempty"`
}

// Patch is one published livepatch as operators see it.
type Patch struct {
	Kernel livepatch.KernelTarget `json:"kernel"`
	livepatch.Livepatch
	// Machines is how many run it now; Failed and Suspect how many report so.
	Machines int `json:"machines"`
	Failed   int `json:"failed"`
	Suspect  int `json:"suspect"`
}

// Publication is the body of POST /v1/publications: a signed change of the
// stream. Publishing, withdrawing, renewing and rotating keys are all this. Every
// digest it newly names must have been uploaded by PUT /v1/blobs/{sha256} before.
// Sent twice it does nothing the second time.
type Publication struct {
	// Metadata is signed TUF metadata by file name ("5.root.json",
	// "targets.json", "kernels-3f.json"), each the successor of what the stream has.
	Metadata map[string][]byte `json:"metadata"`
	// Catalogues are the new catalogue files by target path.
	Catalogues map[string][]byte `json:"catalogues,omitempty"`
	// Reason is for the audit log.
	Reason string `json:"reason,omitempty"`
}

// AuditLine is one line of the audit log.
type AuditLine struct {
	At     time.Time `json:"at"`
	Actor  string    `json:"actor"`
	Action string    `json:"action"`
	Object string    `json:"object,omitempty"`
	Detail string    `json:"detail,omitempty"`
}

// Problem is an error on the wire, RFC 9457 problem details.
type Problem struct {
	// Type is "about:blank".
	Type   string         `json:"type"`
	Title  string         `json:"title"`
	Status int            `json:"status"`
	Detail string         `json:"detail"`
	Code   livepatch.Code `json:"code"`
}
