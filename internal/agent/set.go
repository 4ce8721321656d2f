package agent

import (
	"context"
	"maps"

	"livepatch"
	"livepatch/internal/localapi"
)

// set changes settings, all or none. They are in force at once: the connection is
// made anew, and the machine checks with it.
func (a *Agent) set(ctx context.Context, r localapi.SetConfig) (localapi.Config, error) {
	if err := a.lock(ctx); err != nil {
		return localapi.Config{}, err
	}
	defer a.unlock()
	values := settings(r.Values)
	if err := values.validate(); err != nil {
		return localapi.Config{}, err
	}
	next := maps.Clone(a.override)
	if next == nil {
		next = settings{}
	}
	for key, value := range values {
		if value == "" {
			delete(next, key)
		} else {
			next[key] = value
		}
	}
	if err := a.storeSettings(next); err != nil {
		return localapi.Config{}, err
	}
	if _, ok := values["remote-server"]; ok && a.enabled() {
		if err := a.moveServer(); err != nil {
			return localapi.Config{}, err
		}
	}
	a.schedule(0)
	a.listen.fire()
	a.wake()
	return *a.shown.Load(), nil
}

// storeSettings writes what was set by command and puts it in force.
func (a *Agent) storeSettings(override settings) error {
	base, err := readSettingsFile(a.o.ConfigFile)
	if err != nil {
		return err
	}
	merged := base.with(override)
	o, err := merged.httpOptions()
	if err == nil {
		_, err = a.o.HTTP(o) // refuses certificates that are none before they are kept
	}
	if err != nil {
		return err
	}
	b, err := override.encode()
	if err != nil {
		return err
	}
	if err := a.dir.write(settingsFile, b); err != nil {
		return err
	}
	a.override = override
	a.applySettings(merged)
	a.disconnect()
	return nil
}

// moveServer follows the setting remote-server while enabled: the service moved,
// the enrolment and the trust in its stream stay.
func (a *Agent) moveServer() error {
	server := a.settings.get("remote-server")
	if server == "" {
		return livepatch.Errorf(livepatch.CodeInvalid, "remote-server is empty now, but this machine is enabled at %s and stays there; run 'livepatch disable' to leave", a.identity.Server)
	}
	id := *a.identity
	id.Server = server
	if err := a.dir.writeJSON(identityFile, &id); err != nil {
		return err
	}
	a.identity = &id
	return nil
}
