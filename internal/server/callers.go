package server

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"livepatch"
	"livepatch/internal/store"
)

// caller is who calls: an operator's name or a machine's id.
type caller struct {
	kind right
	name string
}

// actor is how the audit log names the caller.
func (c caller) actor() string { return string(c.kind) + " " + c.name }

// callers remembers for a short time which credential is whose. With several
// servers on one database, callerLife is how long a removed one may still be heard
// by another server than the one that removed it.
type callers struct {
	now func() time.Time

	mu    sync.Mutex
	known map[string]knownCaller
}

type knownCaller struct {
	caller
	until time.Time
}

const (
	callerLife = 30 * time.Second
	// callersKept bounds the memory; beyond it all are looked up anew.
	callersKept = 100_000
)

// find returns who holds the credential in the request.
func (c *callers) find(req *http.Request, kind right, lookup func(context.Context, string) (string, error)) (caller, error) {
	scheme, credential, ok := strings.Cut(req.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || credential == "" {
		return caller{}, livepatch.Errorf(livepatch.CodeUnauthorized, "this is for %ss only and needs their credential (Authorization: Bearer ...)", kind)
	}
	hash := store.Hash(credential)
	c.mu.Lock()
	k, ok := c.known[hash]
	c.mu.Unlock()
	if ok && k.kind == kind && c.now().Before(k.until) {
		return k.caller, nil
	}
	name, err := lookup(req.Context(), hash)
	if err != nil {
		return caller{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= callersKept {
		clear(c.known)
	}
	who := caller{kind: kind, name: name}
	c.known[hash] = knownCaller{caller: who, until: c.now().Add(callerLife)}
	return who, nil
}

// forgetMachine makes a machine's credentials be looked up again.
func (c *callers) forgetMachine(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for hash, k := range c.known {
		if k.kind == machines && k.name == id {
			delete(c.known, hash)
		}
	}
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
