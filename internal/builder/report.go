package builder

import (
	"fmt"
	"strings"
	"time"

	"livepatch/internal/elfdiff"
)

// Report is what became of one build, for programs: the contract of
// `livepatch-admin build --json`.
type Report struct {
	Kernel string `json:"kernel"`
	// Objects are what is patched: "vmlinux" or module names.
	Objects []string `json:"objects"`
	// Functions are replaced and new functions.
	Functions []Function `json:"functions"`
	// Symbols counts the symbols that the livepatch core has to find.
	Symbols int `json:"symbols"`
	// SizeBytes is the module's size; 0 when none was written.
	SizeBytes int64 `json:"size_bytes"`
	// Module is the path of the written module; empty when refused.
	Module string `json:"module,omitempty"`
	// BuildID is the GNU build id of the kernel image it was proven against.
	BuildID string  `json:"build_id,omitempty"`
	Seconds Seconds `json:"seconds"`
	// Refused says why there is no module; empty when there is one.
	Refused []Refusal `json:"refused"`
	// Notes are sentences about what was left out on purpose.
	Notes []string `json:"notes,omitempty"`
}

// Function is one function of the livepatch.
type Function struct {
	Name   string `json:"name"`
	Object string `json:"object"`
	// Kind is "changed" or "new".
	Kind string `json:"kind"`
}

// Seconds says where the time went.
type Seconds struct {
	Prepare float64 `json:"prepare"`
	Compile float64 `json:"compile"`
	Diff    float64 `json:"diff"`
	Write   float64 `json:"write"`
}

// Refusal is one reason why the fix cannot be livepatched.
type Refusal struct {
	// Code is one of elfdiff's Reason codes; stable.
	Code string `json:"code"`
	// File is the source file in the diff.
	File string `json:"file"`
	// Line is the first line of the file, as it is now, that the fix changes; 0 when
	// it is not known.
	Line     int    `json:"line,omitempty"`
	Function string `json:"function,omitempty"`
	Reason   string `json:"reason"`
	Advice   string `json:"advice"`
}

// RefusedError carries the reasons of a refusal; the Report has them too.
type RefusedError struct{ Refused []Refusal }

func (e *RefusedError) Error() string {
	var b strings.Builder
	b.WriteString("the fix cannot be livepatched as it is:")
	for _, r := range e.Refused {
		fmt.Fprintf(&b, "\n  %s: %s: %s. %s", r.File, r.Code, strings.TrimSuffix(r.Reason, "."), r.Advice)
	}
	return b.String()
}

func refuse(code, file, function, reason, advice string) error {
	return &RefusedError{[]Refusal{{Code: code, File: file, Function: function, Reason: reason, Advice: advice}}}
}

// refusals turns what the differ found in one file into report lines.
func refusals(file string, problems []elfdiff.Problem) []Refusal {
	var out []Refusal
	for _, p := range problems {
		out = append(out, Refusal{Code: p.Code, File: file, Function: p.Function, Reason: p.Reason, Advice: p.Advice})
	}
	return out
}

// stopwatch adds up the time of one phase.
func stopwatch(now func() time.Time, to *float64) func() {
	start := now()
	return func() { *to += now().Sub(start).Seconds() }
}
