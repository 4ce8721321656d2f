package server

import (
	"encoding/json"
	"net/http"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

func (s *Server) listRollouts(w http.ResponseWriter, r *http.Request, _ caller) error {
	rollouts, err := s.Store.Rollouts(r.Context(), r.URL.Query().Get("kernel"))
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.List[api.Rollout]{Items: rollouts})
}

func (s *Server) showRollout(w http.ResponseWriter, r *http.Request, _ caller) error {
	out, err := s.Store.Rollout(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, out)
}

// operateRollout does what an operator orders, and answers with what the rollout is
// afterwards.
func (s *Server) operateRollout(w http.ResponseWriter, r *http.Request, who caller) error {
	order, err := decode[api.Order](r)
	if err != nil {
		return err
	}
	if len(order.Reason) > maxSentence {
		return livepatch.Errorf(livepatch.CodeInvalid, "a reason is a sentence, not %d bytes", len(order.Reason))
	}
	id, verb := r.PathValue("id"), r.PathValue("verb")
	if verb == "halt" {
		if err := s.halt(r.Context(), who.actor(), id, order.Reason, nil); err != nil {
			return err
		}
		return s.showRollout(w, r, who)
	}
	change, err := s.Store.OperateRollout(r.Context(), who.actor(), id, verb, order.Reason)
	if err != nil {
		return err
	}
	out, err := s.Store.Rollout(r.Context(), id)
	if err != nil {
		return err
	}
	s.changed(out.Rollout, change)
	s.nudge()
	return s.reply(w, http.StatusOK, out)
}

func (s *Server) planRollout(w http.ResponseWriter, r *http.Request, who caller) error {
	p, err := decode[api.Plan](r)
	if err != nil {
		return err
	}
	k, v, err := pathPatch(r)
	if err != nil {
		return err
	}
	if err := s.Store.PlanRollout(r.Context(), who.actor(), k, v, p); err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, struct{}{})
}

// pathPatch reads which livepatch a path names.
func pathPatch(r *http.Request) (livepatch.KernelTarget, livepatch.Version, error) {
	k := livepatch.KernelTarget{Release: r.PathValue("release"), Arch: r.PathValue("arch")}
	v, err := livepatch.ParseVersion(r.PathValue("version"))
	if err != nil {
		return k, v, err
	}
	return k, v, k.Validate()
}

func (s *Server) patchHealth(w http.ResponseWriter, r *http.Request, _ caller) error {
	k, v, err := pathPatch(r)
	if err != nil {
		return err
	}
	h, err := s.Store.PatchHealth(r.Context(), k, v)
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, h)
}

func (s *Server) listPolicies(w http.ResponseWriter, r *http.Request, _ caller) error {
	policies, err := s.Store.Policies(r.Context())
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, api.List[rollout.Policy]{Items: policies})
}

func (s *Server) showPolicy(w http.ResponseWriter, r *http.Request, _ caller) error {
	p, err := s.Store.Policy(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, p)
}

// setPolicy refuses fields that it does not know, unlike other requests: a policy
// that is only half understood exposes machines as nobody meant.
func (s *Server) setPolicy(w http.ResponseWriter, r *http.Request, who caller) error {
	var p rollout.Policy
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return livepatch.Errorf(livepatch.CodeInvalid, "the policy is not readable: %w", err)
	}
	if name := r.PathValue("name"); p.Name != name {
		return livepatch.Errorf(livepatch.CodeInvalid, "the policy is called %q, and %q was to be set", p.Name, name)
	}
	p, err := s.Store.SetPolicy(r.Context(), who.actor(), p)
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, p)
}

func (s *Server) setTier(w http.ResponseWriter, r *http.Request, who caller) error {
	choice, err := decode[api.TierChoice](r)
	if err != nil {
		return err
	}
	m, err := s.Store.SetTier(r.Context(), who.actor(), r.PathValue("id"), choice.Tier)
	if err != nil {
		return err
	}
	return s.reply(w, http.StatusOK, m)
}
