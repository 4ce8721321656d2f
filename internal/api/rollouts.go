package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
)

// Rollout is one rollout as operators see it. Its draw key is there only once
// nobody can gain by knowing it.
type Rollout struct {
	rollout.Rollout
	// Commitment is the SHA-256 of the draw key, known from the start.
	Commitment string    `json:"commitment"`
	Created    time.Time `json:"created"`
	// Started is zero while it is staged, Changed when it last changed state or stage.
	Started time.Time `json:"started,omitzero"`
	Changed time.Time `json:"changed"`
	// SoakedAt is when the present stage has soaked, if nothing suspicious happens;
	// zero when there is no next stage.
	SoakedAt time.Time        `json:"soaked_at,omitzero"`
	Progress rollout.Progress `json:"progress"`
	// Assessment is the verdict and the evidence so far; nil while staged.
	Assessment *rollout.Assessment `json:"assessment,omitempty"`
	// Changes is what happened to it, oldest first; only in GET /v1/rollouts/{id}.
	Changes []rollout.StageChange `json:"changes,omitempty"`
}

// Order is the body of POST /v1/rollouts/{id}/{verb}.
type Order struct {
	// Reason goes to the audit log, and machines' owners may read it. All verbs but
	// start need one.
	Reason string `json:"reason,omitempty"`
}

// Plan is how the next version of a kernel's livepatch is to be rolled out: the
// body of PUT /v1/plans/{release}/{arch}/{version}. It is made before the version
// is published, and followed when it becomes public.
type Plan struct {
	// Module is the SHA-256 of the module in hex: the plan is for no other that may be
	// published under the same version.
	Module string `json:"module"`
	// Policy is the name of a policy; empty is the server's own choice.
	Policy string `json:"policy,omitempty"`
	// Hold leaves the rollout staged until an operator starts it.
	Hold bool `json:"hold,omitempty"`
	// Expedite offers it to everybody at once. It needs a Reason.
	Expedite bool   `json:"expedite,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// PatchHealth is how the machines fare that were given one livepatch.
type PatchHealth struct {
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	// Rollout is nil for a patch that was published before there were rollouts.
	Rollout *Rollout `json:"rollout,omitempty"`
	// Machines counts machines by how their attempt went: pending, healthy, harmed,
	// stuck, failed, unloaded, void.
	Machines map[string]int `json:"machines"`
	// Reports counts the reports on it by kind.
	Reports map[livepatch.ReportKind]int `json:"reports"`
	// Signatures are those of crashes and warnings, most frequent first, at most 20.
	Signatures []SignatureCount `json:"signatures"`
	// NeedReboot are machines that still run it although it was withdrawn, at
	// most 100.
	NeedReboot []string `json:"need_reboot,omitempty"`
}

// SignatureCount is how many machines reported a signature.
type SignatureCount struct {
	Signature string `json:"signature"`
	Machines  int    `json:"machines"`
}

// Rollouts lists the rollouts of a kernel release, or all when it is empty; newest
// first. Operator credential.
func (c *Client) Rollouts(ctx context.Context, release string) ([]Rollout, error) {
	q := url.Values{}
	if release != "" {
		q.Set("kernel", release)
	}
	return all[Rollout](ctx, c, "/v1/rollouts", q)
}

// Rollout returns one rollout with its history. Operator credential.
func (c *Client) Rollout(ctx context.Context, id string) (Rollout, error) {
	return call[Rollout](ctx, c, http.MethodGet, "/v1/rollouts/"+url.PathEscape(id), nil)
}

// Operate does one verb to a rollout: start, pause, resume, halt, promote or
// expedite. Halting a halted one changes nothing and is no error; else CodeConflict
// when the verb does not fit the state. Operator credential.
func (c *Client) Operate(ctx context.Context, id, verb, reason string) (Rollout, error) {
	return call[Rollout](ctx, c, http.MethodPost, "/v1/rollouts/"+url.PathEscape(id)+"/"+url.PathEscape(verb), Order{Reason: reason})
}

// PlanRollout says how a version that is about to be published is to be rolled
// out. Operator credential.
func (c *Client) PlanRollout(ctx context.Context, k livepatch.KernelTarget, v livepatch.Version, p Plan) error {
	_, err := call[none](ctx, c, http.MethodPut, "/v1/plans/"+url.PathEscape(k.Release)+"/"+url.PathEscape(k.Arch)+"/"+v.String(), p)
	return err
}

// Policies lists the newest version of each policy by name. Operator credential.
func (c *Client) Policies(ctx context.Context) ([]rollout.Policy, error) {
	return all[rollout.Policy](ctx, c, "/v1/policies", nil)
}

// Policy returns the newest version of a policy. Operator credential.
func (c *Client) Policy(ctx context.Context, name string) (rollout.Policy, error) {
	return call[rollout.Policy](ctx, c, http.MethodGet, "/v1/policies/"+url.PathEscape(name), nil)
}

// SetPolicy stores p as the next version of its name and returns it so; what equals
// the newest version changes nothing. p.Version is the version it was made from:
// CodeConflict when that is not the newest any more. Rollouts under way keep the
// policy they started with. Operator credential.
func (c *Client) SetPolicy(ctx context.Context, p rollout.Policy) (rollout.Policy, error) {
	return call[rollout.Policy](ctx, c, http.MethodPut, "/v1/policies/"+url.PathEscape(p.Name), p)
}

// PatchHealth tells how the machines fare that were given a livepatch. Operator
// credential.
func (c *Client) PatchHealth(ctx context.Context, k livepatch.KernelTarget, v livepatch.Version) (PatchHealth, error) {
	return call[PatchHealth](ctx, c, http.MethodGet, "/v1/patches/"+url.PathEscape(k.Release)+"/"+url.PathEscape(k.Arch)+"/"+v.String()+"/health", nil)
}

// Alarm is what the webhook is sent: that a rollout was halted ("rollout.halt"), or
// slowed down by suspicion ("rollout.caution"), with the evidence.
type Alarm struct {
	Event   string                 `json:"event"`
	Rollout string                 `json:"rollout"`
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	Change  rollout.StageChange    `json:"change"`
}

// TierChoice is the body of PUT /v1/machines/{id}/tier.
type TierChoice struct {
	// Tier is the first tier that the machine is to be drawn in; empty is what its
	// plan says. Community machines are canaries in any case.
	Tier livepatch.Tier `json:"tier"`
}

// SetTier chooses a machine's first tier and returns the machine as it is then. ref
// is its id, machine id or host name. Operator credential.
func (c *Client) SetTier(ctx context.Context, ref string, tier livepatch.Tier) (Machine, error) {
	return call[Machine](ctx, c, http.MethodPut, "/v1/machines/"+url.PathEscape(ref)+"/tier", TierChoice{Tier: tier})
}
