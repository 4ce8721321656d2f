package stream_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"livepatch"
	"livepatch/internal/stream"
	"livepatch/internal/stream/streamtest"
)

// TestBudget counts what clients of a stream with 1,000 kernels of 20 versions each
// pay on the wire, headers included: a new one at most 64 KB, one that finds nothing
// new at most 1 KB.
func TestBudget(t *testing.T) {
	t.Parallel()
	repo := streamtest.New(t)
	k := fill(t, repo, 1000, 20)

	var wire atomic.Int64
	srv := httptest.NewUnstartedServer(repo.Handler())
	srv.Listener = countingListener{srv.Listener, &wire}
	srv.Start()
	defer srv.Close()
	fetcher := stream.HTTPFetcher{Client: &http.Client{}, Base: srv.URL}
	reader := repo.Reader()
	check := func() *livepatch.Catalogue {
		cat, err := reader.Refresh(t.Context(), fetcher, k.Target(), repo.Time)
		must(t, err)
		return cat
	}
	cat := check()
	if len(cat.Patches) != 20 {
		t.Fatalf("%d livepatches, want 20", len(cat.Patches))
	}
	first := wire.Swap(0)
	check()
	nothing := wire.Swap(0)
	t.Logf("a new client pays %d bytes, a returning one %d", first, nothing)
	if first > 64<<10 {
		t.Errorf("a new client pays %d bytes, more than 64 KB", first)
	}
	if nothing > 1<<10 {
		t.Errorf("a client that finds nothing new pays %d bytes, more than 1 KB", nothing)
	}
}

// fill puts so many versions of livepatches for so many kernels into the stream and
// returns one of the kernels.
func fill(t *testing.T, repo *streamtest.Repo, kernels, versions int) livepatch.Kernel {
	t.Helper()
	k := kernel()
	template := repo.Livepatch(k, 1, []byte("a module"))
	var targets []livepatch.KernelTarget
	var cats []livepatch.Catalogue
	for i := range kernels {
		cat := livepatch.Catalogue{Kernel: livepatch.KernelTarget{Release: fmt.Sprintf("6.1.0-%d-cloud-amd64", i), Arch: "amd64"}}
		for n := range versions {
			lp := template
			lp.Version = livepatch.Version{Major: uint32(n + 1), Minor: 1}
			lp.Module.Name = fmt.Sprintf("livepatch_%d", n+1)
			lp.Module.VerMagic = cat.Kernel.Release + " SMP preempt mod_unload modversions "
			lp.Fixes = nil
			for f := range n + 1 { // one more vulnerability each time
				lp.Fixes = append(lp.Fixes, livepatch.Fix{CVE: fmt.Sprintf("CVE-2026-%04d", f), Priority: livepatch.PriorityHigh})
			}
			cat.Patches = append(cat.Patches, lp)
		}
		targets, cats = append(targets, cat.Kernel), append(cats, cat)
	}
	v, err := repo.Reader().View(t.Context(), repo.Fetcher(), targets...)
	must(t, err)
	p, err := v.SetCatalogues(cats, "test", stream.Lifetimes{}, repo.Time)
	must(t, err)
	_, err = p.Sign(repo.Keys)
	must(t, err)
	repo.Accept(p)
	return k
}

// countingListener counts the bytes of its connections, both ways.
type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l.n}, err
}

type countingConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}
