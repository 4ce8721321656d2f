package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/kernel"
	"livepatch/internal/localapi"
	"livepatch/internal/stream"
)

// enable enrols the machine. Everything that can be found out without taking a
// seat in the account comes first: whether this kernel can be patched at all, who
// the server is, whether its stream is the expected one.
func (a *Agent) enable(ctx context.Context, r localapi.EnableRequest) (localapi.EnableResponse, error) {
	var none localapi.EnableResponse
	if err := a.lock(ctx); err != nil {
		return none, err
	}
	defer a.unlock()
	if a.enabled() {
		return none, livepatch.Errorf(livepatch.CodeEnabled, "this machine is enabled already, at %s; run 'livepatch disable' first to enable it elsewhere", a.identity.Server)
	}
	if strings.TrimSpace(r.Token) == "" {
		return none, livepatch.Errorf(livepatch.CodeInvalid, "a token is needed: livepatch enable TOKEN")
	}
	if err := a.inspect(); err != nil {
		return none, err
	}
	if err := kernel.Refusal(a.facts); err != nil {
		return none, err
	}
	server, err := a.chosenServer(r.Server)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client, err := a.connect(server, "")
	if err != nil {
		return none, err
	}
	reader, err := a.trust(ctx, client, r.Trust)
	if err != nil {
		return none, err
	}
	_, trusted := reader.First()
	if err := a.enrol(ctx, client, r, trusted); err != nil {
		return none, err
	}
	a.reader = reader
	a.clearProblems()
	a.memory.Held = false
	a.listen.fire()
	a.wake()
	a.o.Log.Info("enabled", "server", server, "id", a.identity.ID, "account", a.identity.Account)
	return localapi.EnableResponse{
		MachineID: a.facts.MachineID, Account: a.identity.Account, Tier: a.identity.Tier, Trusted: trusted,
	}, nil
}

// chosenServer is the one of the request, else the configured one.
func (a *Agent) chosenServer(asked string) (string, error) {
	server := strings.TrimSuffix(cmp.Or(asked, a.settings.get("remote-server")), "/")
	if server == "" {
		return "", livepatch.Errorf(livepatch.CodeInvalid, "which server? Add --server https://... to the command, or set remote-server")
	}
	return server, settings{"remote-server": server}.validate()
}

// trust takes the stream's first root: the package's, else the one that the server
// has, held against the fingerprint when there is one.
func (a *Agent) trust(ctx context.Context, c *api.Client, fingerprint string) (*stream.Reader, error) {
	// A server that cannot be talked to is told apart by its API client best.
	info, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	// A connection that is open already does not look at certificates' dates again.
	if err := (serverClock{server: info.Time, taken: time.Now()}).skew(); err != nil {
		return nil, err
	}
	trusted := "package"
	root, err := os.ReadFile(a.o.TrustFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), a.o.TrustFile == "":
		trusted = "tls"
		if fingerprint != "" {
			trusted = "fingerprint"
		}
		if root, err = stream.FetchFirstRoot(ctx, fetcher(c)); err != nil {
			return nil, explain(ctx, c, err)
		}
	case err != nil:
		return nil, diskError(a.o.TrustFile, err)
	}
	// What an attempt that failed has left would keep its own word for how the root
	// came to be trusted.
	if err := a.dir.remove(streamDir); err != nil {
		return nil, err
	}
	return stream.Trust(a.dir.file(streamDir), root, fingerprint, trusted)
}

// enrol exchanges the token for a seat. The credential is ours and on disk before
// it is sent: whatever is cut off, the same request can be made again.
func (a *Agent) enrol(ctx context.Context, c *api.Client, r localapi.EnableRequest, trusted string) error {
	id := identity{Server: c.BaseURL, Trusted: trusted}
	if a.identity != nil && a.identity.Server == c.BaseURL {
		id.Credential = a.identity.Credential
	} else {
		credential, err := a.randomHex(32)
		if err != nil {
			return err
		}
		id.Credential = credential
	}
	if err := a.dir.writeJSON(identityFile, &id); err != nil {
		return err
	}
	a.identity = &id
	a.o.Crash("enable:asked")
	hostname, _ := os.Hostname() // for people only
	got, err := c.Enrol(ctx, api.EnrolRequest{
		Token: strings.TrimSpace(r.Token), MachineID: a.facts.MachineID, Credential: id.Credential,
		Hostname: hostname, Kernel: a.facts.Kernel, AgentVersion: a.o.Version,
	})
	if err != nil {
		return err
	}
	a.o.Crash("enable:answered")
	if r.Server != "" {
		if err := a.storeSettings(a.override.with(settings{"remote-server": c.BaseURL})); err != nil {
			return err
		}
	}
	done := id
	done.Enrolled, done.ID, done.Account, done.Plan, done.Tier = true, got.ID, got.Account, got.Plan, got.Tier
	if err := a.dir.writeJSON(identityFile, &done); err != nil {
		return err
	}
	a.identity = &done
	a.o.Crash("enable:done")
	return nil
}
