package server

import (
	"net/http"
	"strconv"

	"livepatch"
	"livepatch/internal/api"
)

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
