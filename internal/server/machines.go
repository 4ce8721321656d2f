package server

import (
	"net/http"

	"livepatch/internal/api"
)

// pageSize is how many entries one page of a list has.
const pageSize = 500

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
