package server

import (
	"net/http"
	"regexp"

	"livepatch"
	"livepatch/internal/api"
)

var (
	machineIDRE  = regexp.MustCompile(`^[0-9a-f]{32}$`)
	credentialRE = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (s *Server) enrol(w http.ResponseWriter, r *http.Request, _ caller) error {
	if err := s.enrols.allow(s.peer(r)); err != nil {
		return err
	}
	req, err := decode[api.EnrolRequest](r)
	if err != nil {
		return err
	}
	switch {
	case !machineIDRE.MatchString(req.MachineID):
		return livepatch.Errorf(livepatch.CodeInvalid, "machine_id is not 32 hex digits as in /etc/machine-id")
	case !credentialRE.MatchString(req.Credential):
		return livepatch.Errorf(livepatch.CodeInvalid, "credential is not 64 hex digits")
	case len(req.Hostname) > 255 || len(req.AgentVersion) > 100:
		return livepatch.Errorf(livepatch.CodeInvalid, "hostname or agent_version is too long")
	}
	if err := validKernel(req.Kernel); err != nil {
		return err
	}
	answer, created, err := s.Store.Enrol(r.Context(), req)
	s.metrics.enrolled(livepatch.CodeOf(err))
	if err != nil {
		return err
	}
	if created {
		return s.reply(w, http.StatusCreated, answer)
	}
	s.callers.forgetMachine(answer.ID) // its older credential is void
	return s.reply(w, http.StatusOK, answer)
}

func validKernel(k livepatch.Kernel) error {
	if err := k.Target().Validate(); err != nil {
		return err
	}
	if k.BuildID != "" && !livepatch.ValidBuildID(k.BuildID) || len(k.Version) > 256 || len(k.Signature) > 256 {
		return livepatch.Errorf(livepatch.CodeInvalid, "the kernel's build id, version or signature is not one")
	}
	return nil
}

func (s *Server) leave(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.Store.Leave(r.Context(), who.name); err != nil {
		return err
	}
	s.gone(who.name)
	return s.reply(w, http.StatusOK, struct{}{})
}

// gone forgets a removed machine.
func (s *Server) gone(id string) {
	s.callers.forgetMachine(id)
	s.hub.end(id)
}
