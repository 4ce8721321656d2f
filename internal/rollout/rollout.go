// Package rollout decides who may load a livepatch and when, and judges whether
// the livepatch hurts the machines that did.
//
// Everything here is a function of its arguments: Decide answers one machine,
// Advance moves a rollout to its next stage, and Judge weighs reports. Time,
// randomness and stored state come in as values and go out as values that encode
// to JSON, so that the service keeps them in its database and the simulator in
// memory.
package rollout

import (
	"time"

	"livepatch"
)

// State is where a rollout stands. While it moves it is the tier of its stage.
type State string

// The states.
const (
	// Staged: published, nobody is drawn yet.
	Staged  State = "staged"
	Canary  State = State(livepatch.TierCanary)
	Early   State = State(livepatch.TierEarly)
	General State = State(livepatch.TierGeneral)
	// Halted: no machine may load it any more; those that did keep it.
	Halted State = "halted"
	// Withdrawn: as Halted, and machines that have it unload it.
	Withdrawn State = "withdrawn"
)

// Moving tells whether a rollout in this state can grant anything.
func (s State) Moving() bool { return s == Canary || s == Early || s == General }

// Rollout is one livepatch of one kernel on its way through the stages of its
// policy.
type Rollout struct {
	// ID is random hex; with Key it fixes every machine's draw.
	ID      string                 `json:"id"`
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	State   State                  `json:"state"`
	// Stage is the index of the policy's stage in force. A halted rollout
	// remembers the stage it was halted in.
	Stage int `json:"stage"`
	// StageSince is when the stage began.
	StageSince time.Time `json:"stage_since,omitzero"`
	// Paused holds new grants back without a verdict on the patch.
	Paused bool `json:"paused,omitempty"`
	// Expedited rollouts go to everybody at once and ignore freeze windows. Only
	// the halt stops them.
	Expedited bool `json:"expedited,omitempty"`
	// CautionSince is when the judge last saw something suspicious that was not
	// yet enough to halt; zero when it never did. See Policy.Caution.
	CautionSince time.Time `json:"caution_since,omitzero"`
	// Reason is why it is paused, halted, withdrawn or expedited.
	Reason string `json:"reason,omitempty"`
	// Policy is the copy the rollout started with; later versions of the policy
	// do not change it.
	Policy Policy `json:"policy"`
	// Key is the secret of the draw, KeySize random bytes; see Commitment and
	// Public.
	Key []byte `json:"key,omitempty"`
}

// New stages version of kernel under policy. id and key are random; key has
// KeySize bytes.
func New(id string, kernel livepatch.KernelTarget, version livepatch.Version, policy Policy, key []byte) (Rollout, error) {
	if err := policy.Validate(); err != nil {
		return Rollout{}, err
	}
	if id == "" || len(key) != KeySize || version.IsZero() {
		return Rollout{}, livepatch.Errorf(livepatch.CodeInvalid, "a rollout needs an id, a version and a key of %d bytes", KeySize)
	}
	return Rollout{ID: id, Kernel: kernel, Version: version, State: Staged, Policy: policy, Key: key}, nil
}

// Open is a rollout that offers version to everybody at once, for a service that
// keeps no rollouts. Machines' draws do not matter in it, so it has no key.
func Open(kernel livepatch.KernelTarget, version livepatch.Version, since time.Time) Rollout {
	return Rollout{ID: "open", Kernel: kernel, Version: version, State: General, StageSince: since, Policy: Everybody()}
}

// CurrentStage is the stage in force; the zero Stage while nothing is.
func (r *Rollout) CurrentStage() Stage {
	if r.Stage < 0 || r.Stage >= len(r.Policy.Stages) {
		return Stage{}
	}
	return r.Policy.Stages[r.Stage]
}
