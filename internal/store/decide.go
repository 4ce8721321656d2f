package store

import (
	"time"

	"livepatch"
)

// Facts is what the word on one machine is made from.
type Facts struct {
	Now     time.Time
	Machine string
	Account string
	Plan    string
	Tier    livepatch.Tier
	Kernel  livepatch.Kernel
	BootID  string
	// Catalogue is that of the machine's kernel; nil when there is none.
	Catalogue *livepatch.Catalogue
	Loaded    []livepatch.LoadedPatch
	// Suspects are versions that the machine's boot guard holds back.
	Suspects []livepatch.Version
	// Attempts is the latest report of the machine on each version and each kind,
	// for this kernel.
	Attempts []Attempt
}

// Attempt is one report, as far as it matters for the next grant.
type Attempt struct {
	Version livepatch.Version
	Kind    livepatch.ReportKind
	Code    livepatch.Code
	BootID  string
	// Received is when the server got it, by the server's clock.
	Received time.Time
}

// Decision is the word on one machine.
type Decision struct {
	// Action is empty when the machine is to stay as it is.
	Action  livepatch.Action
	Version livepatch.Version
	// Expires is when a grant ends.
	Expires time.Time
	// Reason is a sentence: why, or why nothing although something is there.
	Reason string
}

// Decide is a rule: facts in, word out. It is called inside a transaction and may
// be called twice for one check-in, so it does nothing else.
type Decide func(Facts) Decision
