package server

import (
	"net/http"
	"strconv"
	"strings"

	"livepatch"
	"livepatch/internal/api"
)

// pageSize is how many entries one page of a list has.
const pageSize = 500

func (s *Server) listAccounts(w http.ResponseWriter, r *http.Request, _ caller) error {
	accounts, err := s.Store.Accounts(r.Context())
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.List[api.Account]{Items: accounts})
}

func (s *Server) createAccount(w http.ResponseWriter, r *http.Request, who caller) error {
	req, err := decode[api.NewAccount](r)
	if err != nil {
		return err
	}
	a, err := s.Store.CreateAccount(r.Context(), who.actor(), req)
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusCreated, a)
}

func (s *Server) listTokens(w http.ResponseWriter, r *http.Request, _ caller) error {
	tokens, err := s.Store.Tokens(r.Context(), r.URL.Query().Get("account"))
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.List[api.Token]{Items: tokens})
}

func (s *Server) createToken(w http.ResponseWriter, r *http.Request, who caller) error {
	req, err := decode[api.NewToken](r)
	if err != nil {
		return err
	}
	trust, err := s.fingerprint(r.Context())
	if err != nil {
		return err
	}
	t, secret, err := s.Store.CreateToken(r.Context(), who.actor(), req)
	if err != nil {
		return err
	}
	enable := []string{"livepatch", "enable", secret, "--server", s.PublicURL}
	if trust != "" {
		enable = append(enable, "--trust", trust)
	}
	return s.reply(w, http.StatusCreated, api.CreatedToken{Token: t, Secret: secret, Enable: strings.Join(enable, " ")})
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request, who caller) error {
	if err := s.Store.RevokeToken(r.Context(), who.actor(), r.PathValue("id")); err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, struct{}{})
}

func (s *Server) listMachines(w http.ResponseWriter, r *http.Request, _ caller) error {
	q := r.URL.Query()
	f := api.MachineFilter{Account: q.Get("account"), Kernel: q.Get("kernel")}
	found, err := s.Store.Machines(r.Context(), f, q.Get("after"), pageSize)
	if err != nil {
		return err
	}
	page := api.List[api.Machine]{Items: found}
	if len(found) == pageSize {
		page.Next = found[pageSize-1].ID
	}
	return s.reply(w, http.StatusOK, page)
}

func (s *Server) showMachine(w http.ResponseWriter, r *http.Request, _ caller) error {
	m, err := s.Store.Machine(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, m)
}

func (s *Server) removeMachine(w http.ResponseWriter, r *http.Request, who caller) error {
	id, err := s.Store.RemoveMachine(r.Context(), who.actor(), r.PathValue("id"))
	if err != nil {
		return err
	}
	s.gone(id)
	return s.reply(w, http.StatusOK, struct{}{})
}

func (s *Server) listPatches(w http.ResponseWriter, r *http.Request, _ caller) error {
	patches, err := s.Store.Patches(r.Context(), r.URL.Query().Get("kernel"))
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.List[api.Patch]{Items: patches})
}

func (s *Server) showPatch(w http.ResponseWriter, r *http.Request, _ caller) error {
	v, err := livepatch.ParseVersion(r.PathValue("version"))
	if err != nil {
		return err
	}
	p, err := s.Store.Patch(r.Context(), livepatch.KernelTarget{Release: r.PathValue("release"), Arch: r.PathValue("arch")}, v)
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, p)
}

// Bounds of how much of the audit log is shown at a time, in lines.
const (
	auditLines    = 100
	maxAuditLines = 1000
)

func (s *Server) listAudit(w http.ResponseWriter, r *http.Request, _ caller) error {
	n := auditLines
	if q := r.URL.Query().Get("limit"); q != "" {
		var err error
		if n, err = strconv.Atoi(q); err != nil || n < 1 || n > maxAuditLines {
			return livepatch.Errorf(livepatch.CodeInvalid, "limit %q is not a number from 1 to %d", q, maxAuditLines)
		}
	}
	lines, err := s.Store.Audit(r.Context(), n)
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.List[api.AuditLine]{Items: lines})
}
