package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/store"
	"livepatch/internal/stream"
)

// publish takes in a signed change of the stream. Once it is written down, it does
// not stop for a caller that goes away.
func (s *Server) publish(w http.ResponseWriter, r *http.Request, who caller) error {
	p, err := decode[api.Publication](r)
	if err != nil {
		return err
	}
	pending, err := begin(p, who)
	if err != nil {
		return err
	}
	ctx := context.WithoutCancel(r.Context())
	s.publishing.Lock()
	defer s.publishing.Unlock()
	todo, err := s.Store.BeginPublication(ctx, pending)
	if err != nil {
		return err
	}
	if todo {
		if err := s.finish(ctx, pending); err != nil {
			return err
		}
	}
	return s.reply(w, http.StatusOK, struct{}{})
}

// begin gives a publication an id by its content, so that it is the same one when
// it is sent again.
func begin(p api.Publication, who caller) (store.PendingPublication, error) {
	canonical, err := json.Marshal(p) // maps in order of their keys
	if err != nil {
		return store.PendingPublication{}, fmt.Errorf("encode publication: %w", err)
	}
	sum := sha256.Sum256(canonical)
	return store.PendingPublication{ID: hex.EncodeToString(sum[:]), Actor: who.actor(), Publication: p}, nil
}

// finish does what is left of a publication, from wherever it stopped.
func (s *Server) finish(ctx context.Context, p store.PendingPublication) error {
	if _, err := s.Stream.Accept(ctx, stream.Change(p.Publication)); err != nil {
		var refused *livepatch.Error
		if !errors.As(err, &refused) {
			return fmt.Errorf("change the stream: %w", err)
		}
		return errors.Join(err, s.Store.AbandonPublication(ctx, p.ID))
	}
	catalogues, err := parseCatalogues(p.Publication)
	if err != nil {
		return err
	}
	p.Policy = s.RolloutPolicy
	if err := s.Store.CompletePublication(ctx, p, catalogues); err != nil {
		return err
	}
	s.metrics.publications.Inc()
	kernels := make([]livepatch.KernelTarget, len(catalogues))
	for i, c := range catalogues {
		kernels[i] = c.Kernel
	}
	s.hub.changed(kernels)
	s.nudge()
	return nil
}

// FinishPublications finishes what a crash or a failing disk left half done.
func (s *Server) FinishPublications(ctx context.Context) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	pending, err := s.Store.PendingPublications(ctx)
	if err != nil {
		return err
	}
	for _, p := range pending {
		switch err := s.finish(ctx, p); {
		case livepatch.CodeOf(err) == livepatch.CodeInternal:
			return fmt.Errorf("finish publication %s: %w", p.ID, err)
		case err != nil:
			s.Log.Warn("dropped a publication that was left half done", "id", p.ID, "actor", p.Actor, "err", err)
		default:
			s.Log.Info("finished a publication that was left half done", "id", p.ID, "actor", p.Actor)
		}
	}
	return nil
}

// parseCatalogues reads the catalogues of a publication, in the order of their
// names.
func parseCatalogues(p api.Publication) ([]livepatch.Catalogue, error) {
	var catalogues []livepatch.Catalogue
	for _, path := range slices.Sorted(maps.Keys(p.Catalogues)) {
		k, err := stream.ParseTargetPath(path)
		if err != nil {
			return nil, err
		}
		var c livepatch.Catalogue
		if err := json.Unmarshal(p.Catalogues[path], &c); err != nil {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "catalogue %s is not readable: %w", path, err)
		}
		if c.Kernel != k {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "catalogue %s is for %s", path, c.Kernel)
		}
		if err := c.Validate(); err != nil {
			return nil, err
		}
		catalogues = append(catalogues, c)
	}
	return catalogues, nil
}
