package store

import (
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// Facts is what the word on one machine is made from.
type Facts struct {
	Now     time.Time
	Machine string
	Account string
	Plan    string
	// Tier is the tier that the machine's owner asked for, or empty.
	Tier   livepatch.Tier
	Kernel livepatch.Kernel
	BootID string
	// Catalogue is that of the machine's kernel; nil when there is none.
	Catalogue *livepatch.Catalogue
	Loaded    []livepatch.LoadedPatch
	// Suspects are versions that the machine's boot guard holds back.
	Suspects []livepatch.Version
	// Retry and RetrySuspect are a person's wish; see api.CheckInRequest.
	Retry, RetrySuspect bool
	// Attempts is the latest report of the machine on each version and each kind,
	// for this kernel.
	Attempts []Attempt
	// Candidates are the rollouts of the catalogue's patches, as they are in the
	// transaction that stores the grant.
	Candidates []rollout.Candidate
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
	// Rollout is the id of the rollout that a grant is of; empty for none.
	Rollout string
	// Reason is a sentence: why, or why nothing although something is there.
	Reason string
}

// Decide is a rule: facts in, word out. It is called inside a transaction and may
// be called twice for one check-in, so it does nothing else.
type Decide func(Facts) Decision
