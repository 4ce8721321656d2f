package agent

import (
	"context"
	"path/filepath"

	"livepatch"
	"livepatch/internal/localapi"
)

// disable gives the enrolment up: the server is told when it can be reached, and
// credential, metadata and cached modules are deleted. What is loaded stays in
// force until it is unloaded or the machine reboots: taking a security fix out is
// a decision of its own. The journal and the suspects stay too, since what this
// machine learnt about crashes outlives the enrolment.
func (a *Agent) disable(ctx context.Context) (localapi.DisableResponse, error) {
	var resp localapi.DisableResponse
	if err := a.lock(ctx); err != nil {
		return resp, err
	}
	defer a.unlock()
	resp.WasEnabled = a.enabled()
	if resp.WasEnabled {
		if err := a.leave(ctx); err != nil {
			resp.Note = "The server was not told (" + err.Error() + "); its operator can remove the machine there."
		}
	}
	// First the credential: what is left behind by a crash here is harmless.
	if err := a.dir.remove(identityFile, streamDir); err != nil {
		return resp, err
	}
	a.identity, a.reader, a.catalogue = nil, nil, nil
	a.o.Crash("disable:left")
	a.memory = memory{Modules: a.memory.Modules, Suspects: a.memory.Suspects, Downs: a.memory.Downs}
	if err := a.saveMemory(); err != nil {
		return resp, err
	}
	if err := a.pruneModules(""); err != nil {
		return resp, err
	}
	a.clearProblems()
	a.listen.fire()
	loaded, err := a.o.Kernel.Loaded()
	if err != nil {
		return resp, err
	}
	for _, p := range loaded {
		if !a.memory.version(nil, p.Name).IsZero() {
			resp.Loaded = append(resp.Loaded, p.Name)
		}
	}
	a.o.Log.Info("disabled", "loaded", resp.Loaded)
	return resp, nil
}

// leave tells the server, in bounded time.
func (a *Agent) leave(ctx context.Context) error {
	c, err := a.server()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	return c.Leave(ctx)
}

// pruneModules deletes every cached module but one.
func (a *Agent) pruneModules(keep string) error {
	cached, err := filepath.Glob(a.dir.file(filepath.Join(moduleDir, "*")))
	if err != nil {
		return err // the pattern is ours
	}
	for _, path := range cached {
		if name := filepath.Base(path); name != keep+".ko" {
			if err := a.dir.remove(filepath.Join(moduleDir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// unload takes our livepatches out by an administrator's wish and holds further
// loads back until `livepatch refresh`.
func (a *Agent) unload(ctx context.Context) (localapi.UnloadResponse, error) {
	resp := localapi.UnloadResponse{Unloaded: []string{}}
	if err := a.lock(ctx); err != nil {
		return resp, err
	}
	defer a.unlock()
	in, err := a.situation(nil)
	if err != nil {
		return resp, err
	}
	modules := names(in.ours())
	a.memory.Held = true
	if err := a.takeOut(ctx, modules, "", "unloaded by hand"); err != nil {
		return resp, err
	}
	resp.Unloaded = append(resp.Unloaded, modules...)
	if a.enabled() {
		resp.Note = "No livepatch is loaded, not even after a reboot, until 'livepatch refresh' is run."
		a.note(areaHeld, livepatch.Errorf(livepatch.CodeConflict, "livepatches are held back because they were unloaded by hand; run 'livepatch refresh' to load them again"))
	}
	a.wake() // tells the server
	return resp, nil
}
