package livepatch

import (
	"errors"
	"fmt"
)

// Code names a kind of failure for programs. Codes are wire contract: they are
// never renamed nor reused.
type Code string

// The codes.
const (
	CodeInvalid       Code = "invalid"         // the input is malformed
	CodeNotFound      Code = "not-found"       // no such thing
	CodeConflict      Code = "conflict"        // the state is not the one assumed
	CodeUnauthorized  Code = "unauthorized"    // no or unknown credential
	CodeForbidden     Code = "forbidden"       // known, but not allowed
	CodeUnknownToken  Code = "unknown-token"   // Unknown Auth-Token
	CodeTokenRevoked  Code = "token-revoked"   // the token was revoked or expired
	CodeTokenUsed     Code = "token-exhausted" // the token's own use limit is reached
	CodeSeatLimit     Code = "seat-limit"      // the plan's machines are all taken
	CodeUnavailable   Code = "unavailable"     // the other side cannot be reached or is overloaded
	CodeTLS           Code = "tls"             // the server's certificate is not trusted
	CodeClock         Code = "clock"           // this machine's clock is wrong
	CodeMetadata      Code = "metadata"        // stream metadata is not acceptable
	CodeExpired       Code = "expired"         // stream metadata or a grant has expired
	CodeRollback      Code = "rollback"        // older stream metadata than already seen
	CodeTampered      Code = "tampered"        // bytes do not match what was signed
	CodeWrongKernel   Code = "wrong-kernel"    // for another kernel
	CodeNotLivepatch  Code = "not-livepatch"   // a module, but no livepatch, or no module at all
	CodeUnsupported   Code = "unsupported"     // this kernel or machine cannot be livepatched
	CodeNotPrivileged Code = "not-privileged"  // needs root or CAP_SYS_MODULE
	CodeNotEnabled    Code = "not-enabled"     // Machine is not enabled
	CodeEnabled       Code = "already-enabled" // enabled already
	CodeRefused       Code = "kernel-refused"  // the kernel refused the module
	CodeUntrustedKey  Code = "untrusted-key"   // the kernel does not trust the module's signature
	CodeStuck         Code = "transition"      // the transition did not end
	CodeSuspect       Code = "suspect"         // the boot guard holds this patch back
	CodeWithdrawn     Code = "withdrawn"       // the patch was withdrawn
	CodeDisk          Code = "disk"            // state could not be written
	CodeInternal      Code = "internal"        // our fault
)

// Error is a failure with a code for programs and a sentence for people. The
// sentence says what is wrong and, where there is something to do, what.
type Error struct {
	Code    Code
	Message string
	// Err is the cause, for logs and errors.Is; may be nil.
	Err error
}

// Errorf makes an Error. With %w the cause can be looked at by callers.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of the first Error in err's chain, CodeInternal when
// there is none, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
