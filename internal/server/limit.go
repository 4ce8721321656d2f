package server

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limiter bounds how often one address may try something.
type limiter struct {
	now   func() time.Time
	every rate.Limit
	burst int

	mu        sync.Mutex
	addresses map[string]*rate.Limiter
}

// tooMany is the error of one that tried too often.
type tooMany struct{}

func (tooMany) Error() string {
	return "too many attempts from this address; wait a minute and try again"
}

// addressesKept bounds the memory.
const addressesKept = 10_000

// allow returns tooMany when the address has used up its share.
func (l *limiter) allow(remote string) error {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	key := network(remote)
	lim, ok := l.addresses[key]
	if !ok {
		if len(l.addresses) >= addressesKept {
			l.dropIdle(now)
		}
		lim = rate.NewLimiter(l.every, l.burst)
		l.addresses[key] = lim
	}
	if !lim.AllowN(now, 1) {
		return tooMany{}
	}
	return nil
}

// dropIdle forgets addresses that have their whole share again, and, should there
// be none, all: somebody with that many addresses is not stopped by this anyway.
func (l *limiter) dropIdle(now time.Time) {
	for key, lim := range l.addresses {
		if lim.TokensAt(now) >= float64(l.burst) {
			delete(l.addresses, key)
		}
	}
	if len(l.addresses) >= addressesKept {
		clear(l.addresses)
	}
}

// peer is the address that a request comes from. A proxy of ours adds the peer it
// sees to the end of X-Forwarded-For; what is before was sent to it by whoever.
func (s *Server) peer(r *http.Request) string {
	if s.BehindProxy {
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		if last := strings.TrimSpace(hops[len(hops)-1]); last != "" {
			return last
		}
	}
	return r.RemoteAddr
}

// network is what counts as one address: an IPv4 address, or the /64 that one
// IPv6 site has at least.
func network(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || ip.Is4() || ip.Is4In6() {
		return host
	}
	p, err := ip.WithZone("").Prefix(64)
	if err != nil {
		return host
	}
	return p.String()
}
