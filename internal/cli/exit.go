package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"livepatch"
)

// Exit codes. They are contract, the same for all our programs.
const (
	ExitOK          = 0
	ExitFailure     = 1 // it did not work; also "not enabled" and "a check failed"
	ExitUsage       = 2 // the command line or a file's content is wrong
	ExitPrivilege   = 3 // needs root
	ExitUnavailable = 4 // the daemon or server cannot be reached
	ExitUnsupported = 5 // this kernel or machine cannot be livepatched
	ExitTrust       = 6 // something is not signed, not fresh or not trusted
	ExitRefused     = 7 // not allowed: token, seats, rights
	ExitConflict    = 8 // the state is not the one assumed; look again
	ExitInterrupted = 130
)

// UsageError is a mistake in the command line, as opposed to one in the world.
type UsageError struct {
	Err error
	// Help is the command that explains, for example "livepatch enable --help".
	Help string
}

func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong.
func (e *UsageError) Unwrap() error { return e.Err }

// silent is an exit code without a message.
type silent int

func (silent) Error() string { return "" }

// Silent ends a command with an exit code and no message, because the result that
// was printed says it all.
func Silent(code int) error { return silent(code) }

// ExitCode maps an error to the exit code of the process.
func ExitCode(err error) int {
	var usage *UsageError
	var quiet silent
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &quiet):
		return int(quiet)
	case errors.As(err, &usage):
		return ExitUsage
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	}
	switch livepatch.CodeOf(err) {
	case livepatch.CodeInvalid:
		return ExitUsage
	case livepatch.CodeNotPrivileged:
		return ExitPrivilege
	case livepatch.CodeUnavailable:
		return ExitUnavailable
	case livepatch.CodeUnsupported, livepatch.CodeWrongKernel, livepatch.CodeNotLivepatch:
		return ExitUnsupported
	case livepatch.CodeTLS, livepatch.CodeClock, livepatch.CodeMetadata, livepatch.CodeExpired,
		livepatch.CodeRollback, livepatch.CodeTampered, livepatch.CodeUntrustedKey:
		return ExitTrust
	case livepatch.CodeUnauthorized, livepatch.CodeForbidden, livepatch.CodeUnknownToken,
		livepatch.CodeTokenRevoked, livepatch.CodeTokenUsed, livepatch.CodeSeatLimit:
		return ExitRefused
	case livepatch.CodeConflict:
		return ExitConflict
	}
	return ExitFailure
}

// PrintError writes "program: message" to w, and where usage is explained when
// usage was the mistake. A silent error prints nothing.
func PrintError(w io.Writer, program string, err error) {
	var quiet silent
	if err == nil || errors.As(err, &quiet) {
		return
	}
	fmt.Fprintf(w, "%s: %s\n", program, err)
	var usage *UsageError
	if errors.As(err, &usage) && usage.Help != "" {
		fmt.Fprintf(w, "Run '%s' for help.\n", usage.Help)
	}
}
