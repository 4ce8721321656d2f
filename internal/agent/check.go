package agent

import (
	"context"
	"io"
	"maps"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/kernel"
	"livepatch/internal/stream"
)

// maxRounds bounds how often one check goes back to the server: ask, act, tell,
// and once more when telling brings another grant.
const maxRounds = 3

// check asks the server what may run and does it, until there is nothing more to
// do or to tell. It returns why it could not; the problem is noted already.
func (a *Agent) check(ctx context.Context) (err error) {
	if !a.enabled() {
		return errNotEnabled
	}
	if err := a.inspect(); err != nil {
		a.note(areaMachine, err)
		return err
	}
	a.note(areaMachine, kernel.Refusal(a.facts))
	a.look(true)
	a.lookAgain(ctx)
	var tried []livepatch.Version
	failed := false
	defer func() {
		if err == nil && !failed {
			a.settle()
		}
	}()
	for range maxRounds {
		grant, err := a.checkIn(ctx)
		if err != nil {
			a.hearWithdrawal(ctx, err)
			return err
		}
		if err := a.refreshStream(ctx); err != nil {
			return err
		}
		if grant != nil && slices.Contains(tried, grant.Version) {
			return nil // it failed a moment ago
		}
		s, err := a.decide(grant)
		if err != nil {
			return err
		}
		a.abandon(s)
		if s.patch != nil {
			tried = append(tried, s.patch.Version)
		}
		if err := a.act(ctx, s, grant); err != nil {
			failed = true
			if ctx.Err() != nil {
				return err
			}
		}
		if len(a.memory.Reports) == 0 {
			return nil
		}
		if err := a.inspect(); err != nil {
			return err
		}
	}
	return nil
}

// checkIn is one exchange with the server.
func (a *Agent) checkIn(ctx context.Context) (*livepatch.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a.asked = a.heard.Load()
	c, err := a.server()
	if err == nil {
		var resp api.CheckInResponse
		if resp, err = c.CheckIn(ctx, a.checkInRequest()); err == nil {
			a.wish = nil
			a.answered(resp)
			return resp.Grant, nil
		}
	}
	if livepatch.CodeOf(err) == livepatch.CodeUnauthorized {
		err = livepatch.Errorf(livepatch.CodeUnauthorized, "the server does not know this machine any more; run 'livepatch disable' and then 'livepatch enable' with a token: %w", err)
	}
	a.note(areaCheckIn, err)
	return nil, err
}

// stillGranted asks once more before a load when the server has called meanwhile:
// what it calls for may be a halt, which takes back what it granted. ok is false when
// it did; without a call the server is not asked.
func (a *Agent) stillGranted(ctx context.Context, g *livepatch.Grant) (ok bool, err error) {
	if g == nil || a.heard.Load() == a.asked {
		return true, nil
	}
	again, err := a.checkIn(ctx)
	return again != nil && again.Action == g.Action && again.Version == g.Version, err
}

// checkInRequest is what the server is told.
func (a *Agent) checkInRequest() api.CheckInRequest {
	status := a.compose()
	req := api.CheckInRequest{
		Kernel: a.facts.Kernel, BootID: a.facts.BootID, BootTime: a.facts.BootTime, AgentVersion: a.o.Version,
		CheckState: livepatch.Checked, PatchState: status.Status[0].Livepatch.State,
		Hardware: a.facts.Hardware, Virt: a.facts.Virt,
		Loaded:  []livepatch.LoadedPatch{},
		Reports: a.memory.Reports[:min(reportBatch, len(a.memory.Reports))],
	}
	if a.wish != nil {
		req.Retry, req.RetrySuspect = true, a.wish.RetrySuspect
	}
	loaded, err := a.o.Kernel.Loaded()
	if err != nil {
		a.note(areaMachine, err)
	}
	for _, p := range loaded {
		req.Loaded = append(req.Loaded, livepatch.LoadedPatch{
			Module: p.Name, Version: a.memory.version(a.catalogue, p.Name), Enabled: p.Enabled, Transition: p.Transition,
		})
	}
	for _, s := range a.memory.Suspects {
		if s.Kernel == a.facts.Kernel.Target() {
			req.Suspects = append(req.Suspects, s.Version)
		}
	}
	// What stood between us and the server does not any more, or it is not told.
	rest := maps.Clone(a.problems)
	delete(rest, areaCheckIn)
	if list := rest.list(); len(list) > 0 {
		req.Problem = list[0].Message
	}
	return req
}

// answered keeps what the server said.
func (a *Agent) answered(resp api.CheckInResponse) {
	now := time.Now()
	a.failures = 0
	a.clock.set(resp.Time, now)
	a.note(areaClock, a.clock.skew())
	a.note(areaCheckIn, nil)
	a.o.Crash("check:answered")
	a.memory.acknowledge(resp.Acknowledged)
	kept := resp
	kept.Grant, kept.Acknowledged = nil, nil // of this moment only
	a.memory.Last = &lastCheck{At: now.UTC(), Response: kept}
	a.schedule(time.Duration(resp.NextSeconds) * time.Second)
	// A full disk is noted. Reports that stay queued there are sent twice at worst.
	_ = a.saveMemory()
}

// refreshStream brings the signed metadata up to date.
func (a *Agent) refreshStream(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := a.openStream()
	if err == nil {
		err = a.refreshCatalogue(ctx)
	}
	a.note(areaStream, err)
	return err
}

// hearWithdrawal looks for a withdrawal in the stream when the check-in failed: a
// patch that hurts goes also from a machine that the server does not talk to, since
// the stream is public and its signatures are what counts.
func (a *Agent) hearWithdrawal(ctx context.Context, failed error) {
	if ctx.Err() != nil {
		return
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := a.openStream()
	if err == nil {
		err = a.refreshCatalogue(asking)
	}
	// A server that is away is one problem, not two.
	if code := livepatch.CodeOf(err); err == nil || code != livepatch.CodeUnavailable && code != livepatch.CodeOf(failed) {
		a.note(areaStream, err)
	}
	if err == nil {
		a.obeyWithdrawal(ctx)
	}
}

// obeyWithdrawal unloads what the signed catalogue withdraws, and does nothing else.
func (a *Agent) obeyWithdrawal(ctx context.Context) {
	s, err := a.decide(nil)
	if err == nil && s.kind == stepUnload {
		// The outcome is noted and reported.
		_ = a.act(ctx, s, nil)
	}
}

func (a *Agent) refreshCatalogue(ctx context.Context) error {
	c, err := a.server()
	if err != nil {
		return err
	}
	cat, err := a.reader.Refresh(ctx, fetcher(c), a.facts.Kernel.Target(), time.Now())
	if livepatch.CodeOf(err) == livepatch.CodeUnsupported {
		a.catalogue = nil // the signed word that there is nothing for this kernel
		return nil
	}
	if err != nil {
		return explain(ctx, c, err)
	}
	a.catalogue = cat
	a.noteSuspects() // one of them may be withdrawn by now
	return nil
}

// openStream opens what is kept of the stream.
func (a *Agent) openStream() (err error) {
	if a.reader == nil {
		a.reader, err = stream.Open(a.dir.file(streamDir))
	}
	return err
}

// situation is what a decision depends on, now.
func (a *Agent) situation(grant *livepatch.Grant) (planInput, error) {
	loaded, err := a.o.Kernel.Loaded()
	return planInput{
		kernel: a.facts.Kernel, catalogue: a.catalogue, loaded: loaded,
		memory: &a.memory, grant: grant, now: a.clock.at(time.Now()),
	}, err
}

func (a *Agent) decide(grant *livepatch.Grant) (step, error) {
	if grant != nil && grant.Action == livepatch.ActionApply && a.memory.Held {
		grant = nil // an administrator unloaded by hand
	}
	in, err := a.situation(grant)
	if err != nil {
		a.note(areaMachine, err)
		return step{}, err
	}
	return plan(in), nil
}

// abandon clears the journal of an attempt that never reached the kernel, because the
// daemon died before, when the decision is not to make it again: left over, it would
// accuse the patch of a power cut that it had no part in.
func (a *Agent) abandon(s step) {
	j := a.journal
	if j == nil || j.Phase != phaseLoading || j.BootID != a.facts.BootID || a.o.Kernel.HasModule(j.Module) {
		return
	}
	if s.kind == stepApply && s.patch.Version == j.Version {
		return // apply counts the tries
	}
	a.note(areaDisk, a.saveJournal(j.Before))
}

// act does what was decided. Its error is reported and noted already.
func (a *Agent) act(ctx context.Context, s step, grant *livepatch.Grant) error {
	if s.refusal != nil {
		a.refuse(s.refusal, grant)
	}
	grantID := ""
	if grant != nil {
		grantID = grant.ID
	}
	switch s.kind {
	case stepUnload:
		return a.takeOut(ctx, s.modules, grantID, s.reason)
	case stepApply:
		return a.apply(ctx, attempt{patch: s.patch, grant: grant, fetch: func(ctx context.Context, w io.Writer) error {
			return a.download(ctx, s.patch, w)
		}})
	}
	return s.refusal
}

// settle forgets an older failure when a check brought none and the version that
// failed is not the one to run any more.
func (a *Agent) settle() {
	if a.catalogue != nil {
		if p := a.catalogue.Latest(a.facts.Kernel); p != nil && p.Version == a.failedVersion {
			return
		}
	}
	a.failedVersion = livepatch.Version{}
	a.note(areaApply, nil)
}

func (a *Agent) download(ctx context.Context, p *livepatch.Livepatch, w io.Writer) error {
	c, err := a.server()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	return explain(ctx, c, stream.FetchModule(ctx, fetcher(c), *p, w))
}

// refuse reports a grant that is not followed.
func (a *Agent) refuse(why error, grant *livepatch.Grant) {
	a.failedVersion = livepatch.Version{}
	a.note(areaApply, why)
	r := livepatch.Report{
		Kind: livepatch.ReportFailed, Version: grant.Version, Grant: grant.ID,
		Code: livepatch.CodeOf(why), Detail: why.Error(),
	}
	if r.Version.IsZero() { // a grant to unload names none: it is about what runs
		r.Version, r.Module = a.inForce()
	}
	a.tell(r)
	_ = a.saveMemory() // noted; the report is in memory all the same
}
