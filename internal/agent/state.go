package agent

import (
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/api"
)

// identity is who this machine is to its server. It is written before the
// enrolment is asked for, so that an enrolment that was cut off anywhere is
// resumed with the same credential and takes one seat, not two.
type identity struct {
	Server     string `json:"server"`
	Credential string `json:"credential"`
	// Enrolled is false while the server has not confirmed.
	Enrolled bool           `json:"enrolled"`
	ID       string         `json:"id,omitempty"`
	Account  string         `json:"account,omitempty"`
	Plan     string         `json:"plan,omitempty"`
	Tier     livepatch.Tier `json:"tier,omitempty"`
	// Trusted is how the first root came to be trusted: "package", "fingerprint"
	// or "tls".
	Trusted string `json:"trusted,omitempty"`
}

// memory is what the agent has learnt and must not forget over a reboot.
type memory struct {
	// Boot is loaded at the next boot before the network; nil for nothing.
	Boot *bootPatch `json:"boot,omitempty"`
	// Modules are those that we loaded, and their versions: a catalogue may have
	// lost a version that still runs.
	Modules map[string]livepatch.Version `json:"modules,omitempty"`
	// Held is set when somebody unloaded by hand: nothing is loaded until they
	// ask for it.
	Held     bool               `json:"held,omitempty"`
	Suspects []suspect          `json:"suspects,omitempty"`
	Last     *lastCheck         `json:"last,omitempty"`
	Reports  []livepatch.Report `json:"reports,omitempty"`
	// Seen is the boot seen last; nil before there was one while enabled.
	Seen    *seenBoot `json:"seen,omitempty"`
	Unasked unasked   `json:"unasked,omitzero"`
	// Downs is what the boot guard counts.
	Downs downs `json:"downs,omitzero"`
}

// bootPatch names a module in the cache. What its bytes must be, the signed
// catalogue says.
type bootPatch struct {
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	Module  string                 `json:"module"`
}

// lastCheck is what the server said last.
type lastCheck struct {
	At       time.Time           `json:"at"`
	Response api.CheckInResponse `json:"response"`
}

// maxReports bounds the queue of reports that the server does not have yet, and
// batch how many go with one check-in.
const (
	maxReports  = 64
	reportBatch = 32
)

// queue adds a report. One that is queued already is not added again. When the
// queue is full, good news goes first, then what is about no livepatch, then the
// oldest.
func (m *memory) queue(r livepatch.Report) {
	if slices.ContainsFunc(m.Reports, func(q livepatch.Report) bool { return q.ID == r.ID }) {
		return
	}
	m.Reports = append(m.Reports, r)
	if len(m.Reports) <= maxReports {
		return
	}
	i := slices.IndexFunc(m.Reports, func(q livepatch.Report) bool { return q.Kind == livepatch.ReportHealthy })
	if i < 0 {
		i = max(0, slices.IndexFunc(m.Reports, func(q livepatch.Report) bool { return q.Version.IsZero() }))
	}
	m.Reports = slices.Delete(m.Reports, i, i+1)
}

// acknowledge drops the reports that the server has stored.
func (m *memory) acknowledge(ids []string) {
	m.Reports = slices.DeleteFunc(m.Reports, func(r livepatch.Report) bool { return slices.Contains(ids, r.ID) })
}

// suspected returns the suspicion against a version on the running kernel.
func (m *memory) suspected(k livepatch.Kernel, v livepatch.Version) *suspect {
	for i, s := range m.Suspects {
		if s.Version == v && s.Kernel == k.Target() {
			return &m.Suspects[i]
		}
	}
	return nil
}

// maxSuspects bounds what is remembered; older ones are of kernels long gone.
const maxSuspects = 64

func (m *memory) suspect(s suspect) {
	for _, known := range m.Suspects {
		if known.Version == s.Version && known.Kernel == s.Kernel {
			return
		}
	}
	m.Suspects = append(m.Suspects, s)
	if n := len(m.Suspects); n > maxSuspects {
		m.Suspects = slices.Delete(m.Suspects, 0, n-maxSuspects)
	}
}

// version tells which version a loaded module is: by the catalogue, else by what
// we remember; zero when it is not ours.
func (m *memory) version(c *livepatch.Catalogue, module string) livepatch.Version {
	if c != nil {
		if p := c.FindModule(module); p != nil {
			return p.Version
		}
	}
	return m.Modules[module]
}
