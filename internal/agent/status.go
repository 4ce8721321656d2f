package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/localapi"
)

// publish makes what the socket answers.
func (a *Agent) publish() {
	if !a.enabled() {
		a.status.Store(nil)
		return
	}
	s := a.compose()
	a.status.Store(&s)
}

// working shows what is being done with a patch, while it is; "" ends it.
func (a *Agent) working(s livepatch.PatchState) {
	a.applying = s
	a.publish()
}

// statusNow is the published status with the time of asking.
func (a *Agent) statusNow(now time.Time) (localapi.Status, error) {
	p := a.status.Load()
	if p == nil {
		return localapi.Status{}, errNotEnabled
	}
	s := *p
	if !s.BootTime.IsZero() {
		s.Uptime = fmt.Sprint(int64(now.Sub(s.BootTime).Seconds()))
	}
	return s, nil
}

// compose is the status of an enabled machine, from what we know.
func (a *Agent) compose() localapi.Status {
	s := localapi.Status{
		ClientVersion: a.o.Version, MachineID: a.facts.MachineID, Architecture: a.facts.Kernel.Arch,
		CPUModel: a.facts.CPUModel, BootTime: a.facts.BootTime, Tier: a.identity.Tier,
		Trusted: a.identity.Trusted, ServerCheckIn: "pending", Outstanding: []localapi.Fix{}, Problems: a.problems.list(),
	}
	loaded, err := a.o.Kernel.Loaded()
	if err != nil {
		a.o.Log.Warn("status", "err", err)
	}
	ks := localapi.KernelStatus{
		Kernel: a.facts.Kernel.Name(), Running: true, Supported: livepatch.SupportedUnknown,
		Livepatch: localapi.PatchStatus{CheckState: livepatch.CheckNeeded},
	}
	top := a.top(loaded)
	if last := a.memory.Last; last != nil {
		s.LastCheck, s.ServerCheckIn = last.At, "succeeded"
		s.Tier = cmp.Or(last.Response.Tier, s.Tier)
		ks.Livepatch.CheckState = livepatch.Checked
		ks.Supported = cmp.Or(last.Response.Supported, livepatch.SupportedUnknown)
		ks.UpgradeRequiredDate = last.Response.UpgradeRequiredDate
		s.Outstanding = a.outstanding(last.Response.Outstanding, top)
	}
	for _, where := range []area{areaStream, areaCheckIn} {
		if p, failed := a.problems[where]; failed {
			s.ServerCheckIn = "failed: " + p.Message
			ks.Livepatch.CheckState = livepatch.CheckFailed
		}
	}
	ks.Livepatch.State = a.patchState(top, ks.Supported)
	if top != nil {
		ks.Livepatch.Version = top.version
		ks.Livepatch.Fixes = a.fixes(top)
	}
	s.Status = []localapi.KernelStatus{ks}
	return s
}

// top is the newest of our patches in the kernel, nil for none.
func (a *Agent) top(loaded []kernel.Patch) *running {
	in := planInput{catalogue: a.catalogue, loaded: loaded, memory: &a.memory}
	for _, r := range in.ours() {
		if r.Enabled {
			return &r
		}
	}
	return nil
}

// patchState sums the machine's state up, the gravest first.
func (a *Agent) patchState(top *running, supported livepatch.Supported) livepatch.PatchState {
	_, applyFailed := a.problems[areaApply]
	_, suspected := a.problems[areaGuard]
	switch {
	case a.applying != "":
		return a.applying
	case top != nil && top.Transition:
		return livepatch.StateApplying
	case top != nil && a.journal != nil && a.journal.Module == top.Name && a.journal.Found != "":
		return livepatch.StateAppliedWithBug
	case applyFailed, suspected:
		return livepatch.StateApplyFailed
	case top != nil:
		return livepatch.StateApplied
	case supported == livepatch.SupportedUpgrade, a.catalogue != nil && len(a.catalogue.Unpatchable) > 0:
		return livepatch.StateKernelUpgradeRequired
	case a.memory.Last == nil:
		return livepatch.StateUnknown
	case a.catalogue != nil && a.catalogue.Latest(a.facts.Kernel) != nil:
		return livepatch.StateUnapplied
	}
	return livepatch.StateNothingToApply
}

// fixes lists what the running patch closes, and what of the kernel it cannot.
func (a *Agent) fixes(top *running) []localapi.Fix {
	var fixes []localapi.Fix
	if a.catalogue == nil {
		return fixes
	}
	if p := a.catalogue.Find(top.version); p != nil {
		for _, f := range p.Fixes {
			fixes = append(fixes, localapi.Fix{Name: strings.ToLower(f.CVE), Description: f.Description, Patched: true})
		}
	}
	return fixes
}

// outstanding are the server's and the catalogue's open fixes, less what runs.
func (a *Agent) outstanding(open []livepatch.Fix, top *running) []localapi.Fix {
	if a.catalogue != nil {
		for _, u := range a.catalogue.Unpatchable {
			open = append(slices.Clip(open), u.Fix)
		}
	}
	closed := map[string]bool{}
	if top != nil {
		for _, f := range a.fixes(top) {
			closed[f.Name] = true
		}
	}
	list := []localapi.Fix{}
	for _, f := range open {
		if name := strings.ToLower(f.CVE); !closed[name] {
			closed[name] = true
			list = append(list, localapi.Fix{Name: name, Description: f.Description})
		}
	}
	return list
}

// clearProblems forgets what belonged to another enrolment.
func (a *Agent) clearProblems() {
	for where := range a.problems {
		if where != areaMachine && where != areaDisk {
			delete(a.problems, where)
		}
	}
}

// doctor checks every requirement, now. It reads the kernel and our state only.
func (a *Agent) doctor() (localapi.Doctor, error) {
	f, err := a.o.Kernel.Inspect()
	if err != nil {
		return localapi.Doctor{}, err
	}
	d := localapi.Doctor{Checks: []localapi.Check{}}
	for _, r := range kernel.Requirements(f) {
		d.Checks = append(d.Checks, localapi.Check{Name: r.Name, OK: r.OK, Found: r.Found, Remedy: remedy(r.OK, r.Remedy)})
	}
	s, err := a.statusNow(time.Now())
	if err != nil {
		return localapi.Doctor{Checks: append(d.Checks, localapi.Check{
			Name: "enabled", Found: "this machine is not enabled", Remedy: "Run 'livepatch enable TOKEN' as root.",
		})}, nil
	}
	ok := s.ServerCheckIn == "succeeded"
	d.Checks = append(d.Checks,
		localapi.Check{Name: "enabled", OK: true, Found: "first root trusted by " + s.Trusted},
		localapi.Check{Name: "server", OK: ok, Found: "last check-in " + s.ServerCheckIn, Remedy: remedy(ok, "Run 'livepatch refresh' to check again.")})
	for _, p := range s.Problems {
		d.Checks = append(d.Checks, localapi.Check{Name: string(p.Code), Found: p.Message})
	}
	return d, nil
}

func remedy(ok bool, text string) string {
	if ok {
		return ""
	}
	return text
}
