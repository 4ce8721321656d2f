package server

import (
	"net/http"

	"livepatch/internal/api"
)

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
