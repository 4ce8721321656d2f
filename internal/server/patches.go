package server

import (
	"net/http"

	"livepatch"
	"livepatch/internal/api"
)

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
