package agent

import (
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

// stepKind is what is to be done next.
type stepKind string

// The steps.
const (
	stepNone   stepKind = "none"
	stepApply  stepKind = "apply"
	stepUnload stepKind = "unload"
)

// step is one decision: what to do and why, or why not.
type step struct {
	kind stepKind
	// patch is what to load.
	patch *livepatch.Livepatch
	// modules are what to unload, the one on top first.
	modules []string
	reason  string
	// refusal is why a grant is not followed; kind may be stepUnload even so.
	refusal error
}

// planInput is all that a decision depends on.
type planInput struct {
	kernel livepatch.Kernel
	// catalogue is nil when the stream does not cover the kernel, or is not known.
	catalogue *livepatch.Catalogue
	// loaded are the livepatches in the kernel, those of others included.
	loaded []kernel.Patch
	memory *memory
	// grant is the server's word; nil for none.
	grant *livepatch.Grant
	// now is the server's time, as well as we know it.
	now time.Time
}

// plan decides what to do. The server's grant only chooses among what the signed
// catalogue allows, and takes nothing out by itself; what the catalogue withdraws
// goes, whatever the server says.
func plan(in planInput) step {
	ours := in.ours()
	withdrawn, off := in.withdrawn(ours)
	if in.grant != nil && in.grant.Action == livepatch.ActionApply {
		patch, refusal := in.allowed(ours)
		switch {
		case patch != nil:
			return step{kind: stepApply, patch: patch, reason: in.grant.Reason}
		case withdrawn == nil:
			return step{kind: stepNone, refusal: refusal}
		}
		return step{kind: stepUnload, modules: off, reason: withdrawn.Withdrawn.Reason, refusal: refusal}
	}
	switch {
	case withdrawn != nil:
		return step{kind: stepUnload, modules: off, reason: withdrawn.Withdrawn.Reason}
	case in.grant != nil && in.grant.Action == livepatch.ActionUnload && !in.expired() && len(ours) > 0:
		return step{kind: stepNone, refusal: livepatch.Errorf(livepatch.CodeMetadata, "the server said to unload livepatch %s, but the signed catalogue does not withdraw it; it stays", ours[0].version)}
	}
	return step{kind: stepNone}
}

// running is one of our livepatches in the kernel.
type running struct {
	kernel.Patch
	version livepatch.Version
}

// ours are the loaded livepatches that this service knows, newest first: where
// patches stack, that is the order in which they come off.
func (in planInput) ours() []running {
	var all []running
	for _, p := range in.loaded {
		if v := in.memory.version(in.catalogue, p.Name); !v.IsZero() {
			all = append(all, running{p, v})
		}
	}
	slices.SortFunc(all, func(a, b running) int { return b.version.Compare(a.version) })
	return all
}

func names(rs []running) []string {
	var all []string
	for _, r := range rs {
		all = append(all, r.Name)
	}
	return all
}

// withdrawn returns the oldest running patch that the signed catalogue withdraws,
// and the modules that must go: itself and, where patches stack, what is on top.
func (in planInput) withdrawn(ours []running) (*livepatch.Livepatch, []string) {
	if in.catalogue == nil {
		return nil, nil
	}
	for i, r := range slices.Backward(ours) {
		if p := in.catalogue.Find(r.version); p != nil && p.Withdrawn != nil {
			return p, names(ours[:i+1])
		}
	}
	return nil, nil
}

func (in planInput) expired() bool { return !in.now.Before(in.grant.Expires) }

// allowed returns the patch that the grant names when everything that is signed,
// and this machine, agrees. Neither patch nor error: it runs already.
func (in planInput) allowed(ours []running) (*livepatch.Livepatch, error) {
	v := in.grant.Version
	if in.expired() {
		return nil, livepatch.Errorf(livepatch.CodeExpired, "the server's grant for livepatch %s has expired; the next check brings a new one", v)
	}
	if in.catalogue == nil || in.catalogue.Find(v) == nil {
		return nil, livepatch.Errorf(livepatch.CodeMetadata, "the server grants livepatch %s, which the signed stream does not have for %s; nothing was loaded", v, in.kernel.Target())
	}
	p := in.catalogue.Find(v)
	if err := admissible(p, in.kernel, in.memory); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(in.loaded, func(l kernel.Patch) bool { return in.memory.version(in.catalogue, l.Name).IsZero() }); i >= 0 {
		return nil, livepatch.Errorf(livepatch.CodeConflict, "livepatch module %s was loaded by somebody else; livepatch %s was not loaded, because two tools that patch one kernel undo each other: remove that module first", in.loaded[i].Name, v)
	}
	for _, r := range ours {
		if r.version == v {
			return nil, nil
		}
		signed := in.catalogue.Find(r.version)
		if r.version.Compare(v) > 0 && (signed == nil || signed.Withdrawn == nil) {
			return nil, livepatch.Errorf(livepatch.CodeRollback, "the server grants livepatch %s, which is older than the running %s; going back is done only when the running one is withdrawn in the signed stream", v, r.version)
		}
	}
	return p, nil
}

// admissible tells whether a signed patch may be loaded on this kernel at all, by
// grant or at boot.
func admissible(p *livepatch.Livepatch, k livepatch.Kernel, m *memory) error {
	switch s := m.suspected(k, p.Version); {
	case p.Withdrawn != nil:
		return livepatch.Errorf(livepatch.CodeWithdrawn, "livepatch %s was withdrawn: %s", p.Version, p.Withdrawn.Reason)
	case !p.MadeFor(k):
		return livepatch.Errorf(livepatch.CodeWrongKernel, "livepatch %s is not for this kernel: it was proven against other builds of %s than the running one (build id %s)", p.Version, k.Release, k.BuildID)
	case s != nil:
		return s.err()
	}
	return nil
}
