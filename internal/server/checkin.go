package server

import (
	"net/http"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// Bounds of a check-in, in entries and bytes.
const (
	maxReports  = 32
	maxLoaded   = 256
	maxSentence = 4 << 10
)

func (s *Server) checkIn(w http.ResponseWriter, r *http.Request, who caller) error {
	req, err := decode[api.CheckInRequest](r)
	if err != nil {
		return err
	}
	if err := validCheckIn(&req); err != nil {
		return err
	}
	in, err := s.Store.CheckIn(r.Context(), who.name, req, s.Decide)
	if err != nil {
		if livepatch.CodeOf(err) == livepatch.CodeUnauthorized {
			s.gone(who.name)
		}
		return err
	}
	s.hub.kernelOf(who.name, req.Kernel.Target())
	s.metrics.checkedIn(in.Grant)
	if slices.ContainsFunc(req.Reports, func(r livepatch.Report) bool { return rollout.HarmOf(r.Kind) != "" }) {
		s.nudge()
	}
	return s.reply(w, http.StatusOK, s.answerCheckIn(in))
}

func validCheckIn(r *api.CheckInRequest) error {
	switch {
	case len(r.Reports) > maxReports:
		return livepatch.Errorf(livepatch.CodeInvalid, "%d reports in one check-in; send the oldest %d first", len(r.Reports), maxReports)
	case len(r.Loaded) > maxLoaded, len(r.Suspects) > maxLoaded, len(r.Problem) > maxSentence, len(r.BootID) > 64, len(r.AgentVersion) > 100,
		len(r.CheckState) > 64, len(r.PatchState) > 64, len(r.Hardware) > 64, len(r.Virt) > 64:
		return livepatch.Errorf(livepatch.CodeInvalid, "a field of the check-in is too long")
	}
	for i := range r.Reports {
		p := &r.Reports[i]
		if p.ID == "" || len(p.ID) > 64 || len(p.Grant) > 64 || len(p.Kind) > 32 || len(p.Signature) > maxSentence {
			return livepatch.Errorf(livepatch.CodeInvalid, "a report needs an id of at most 64 bytes, and none of its fields may be too long")
		}
		if p.Kernel != (livepatch.KernelTarget{}) {
			if err := p.Kernel.Validate(); err != nil {
				return err
			}
		}
		// A crash report must not be lost for being long.
		p.Evidence = p.Evidence[:min(len(p.Evidence), livepatch.MaxEvidence)]
		p.Detail = p.Detail[:min(len(p.Detail), maxSentence)]
	}
	return validKernel(r.Kernel)
}

func (s *Server) answerCheckIn(in store.CheckedIn) api.CheckInResponse {
	now := s.Now()
	a := api.CheckInResponse{
		Time:         now.UTC(),
		Grant:        in.Grant,
		Reason:       in.Reason,
		Acknowledged: in.Acknowledged,
		Supported:    supported(in.Catalogue, in.Machine.Kernel, now),
		Tier:         in.Machine.Tier,
		NextSeconds:  int(s.CheckInterval / time.Second),
	}
	if in.Catalogue != nil {
		a.UpgradeRequiredDate = in.Catalogue.CoveredUntil
		a.Outstanding = outstanding(in.Catalogue, in.Machine)
	}
	return a
}

// supported says whether the kernel is covered. The day that coverage ends is
// covered; after it a newer kernel is needed. That a vulnerability cannot be
// livepatched does not end the coverage: it is part of the catalogue, and the
// machine tells of it.
func supported(c *livepatch.Catalogue, k livepatch.Kernel, now time.Time) livepatch.Supported {
	if c == nil {
		return livepatch.SupportedNo
	}
	if end, err := time.Parse(time.DateOnly, c.CoveredUntil); err == nil && !now.Before(end.AddDate(0, 0, 1)) {
		return livepatch.SupportedUpgrade
	}
	made := slices.ContainsFunc(c.Patches, func(p livepatch.Livepatch) bool { return p.MadeFor(k) })
	if len(c.Patches) > 0 && !made {
		return livepatch.SupportedNo // the same release, but another binary
	}
	return livepatch.SupportedYes
}

// outstanding lists the fixes known for the kernel that the machine does not run.
func outstanding(c *livepatch.Catalogue, m api.Machine) []livepatch.Fix {
	has := map[string]bool{}
	if p := c.Find(m.Version); p != nil {
		for _, f := range p.Fixes {
			has[f.CVE] = true
		}
	}
	var open []livepatch.Fix
	add := func(f livepatch.Fix) {
		if !has[f.CVE] {
			has[f.CVE] = true
			open = append(open, f)
		}
	}
	// A withdrawn patch's vulnerabilities are open again where nothing newer has them.
	for i := range c.Patches {
		if !c.Patches[i].MadeFor(m.Kernel) {
			continue
		}
		for _, f := range c.Patches[i].Fixes {
			add(f)
		}
	}
	for _, u := range c.Unpatchable {
		add(u.Fix)
	}
	return open
}
