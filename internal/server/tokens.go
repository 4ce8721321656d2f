package server

import (
	"net/http"
	"strings"

	"livepatch/internal/api"
)

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
