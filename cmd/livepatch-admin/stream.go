package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

// firstRoot is the file in the folder of keys that trust in the stream begins with.
const firstRoot = "1.root.json"

// attempts is how often a change is made anew when somebody else was faster.
const attempts = 5

// reader opens the operator's verified view of the stream, kept beside the keys.
// Trust begins with the root that was made there, else with the fingerprint in the
// configuration, else with what the server says over TLS, which is told.
func (s *session) reader(ctx context.Context, p *program) (*stream.Reader, error) {
	dir := filepath.Join(s.Keys, "stream")
	root, err := os.ReadFile(filepath.Join(s.Keys, firstRoot))
	if err == nil {
		return stream.Trust(dir, root, s.Trust, "package")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read first root: %w", err)
	}
	if r, err := stream.Open(dir); err == nil {
		return r, nil
	}
	root, err = stream.FetchFirstRoot(ctx, s.fetcher)
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	how := "fingerprint"
	if s.Trust == "" {
		how = "tls"
		fmt.Fprintf(p.s.Err, "livepatch-admin: trusting the server's root %s because its TLS certificate is valid; check it\n", stream.Fingerprint(root))
	}
	return stream.Trust(dir, root, s.Trust, how)
}

// explain words a failure of the transport as the API's client does.
func (s *session) explain(ctx context.Context, err error) error {
	var known *livepatch.Error
	if errors.As(err, &known) {
		return err
	}
	if _, again := s.api.Info(ctx); again != nil {
		return again
	}
	return livepatch.Errorf(livepatch.CodeUnavailable, "the server's stream is not reachable: %w", err)
}

// submission is what became of a change.
type submission struct {
	// Published is false when signatures are still missing.
	Published bool `json:"published"`
	// Pending is the file for the next key holder.
	Pending string           `json:"pending,omitempty"`
	Missing []stream.Missing `json:"missing,omitempty"`
}

// submit makes a change from the current view, signs it with the keys at hand and
// publishes it, once more when somebody else was faster. Where signatures are
// missing it is written to a file instead.
func (s *session) submit(ctx context.Context, p *program, kernels []livepatch.KernelTarget, change func(*stream.View) (*stream.Pending, error)) (submission, error) {
	keys, err := stream.LoadKeys(s.Keys)
	if err != nil {
		return submission{}, err
	}
	r, err := s.reader(ctx, p)
	if err != nil {
		return submission{}, err
	}
	for try := 1; ; try++ {
		view, err := r.View(ctx, s.fetcher, kernels...)
		if err != nil {
			return submission{}, s.explain(ctx, err)
		}
		pending, err := change(view)
		if err != nil {
			return submission{}, err
		}
		if _, err := pending.Sign(keys); err != nil {
			return submission{}, err
		}
		sub, err := s.push(ctx, p, pending, "")
		if livepatch.CodeOf(err) == livepatch.CodeConflict && try < attempts {
			continue
		}
		return sub, err
	}
}

// push publishes a change that has all signatures, and writes one that has not to
// path, or to a new file when path is empty.
func (s *session) push(ctx context.Context, p *program, pending *stream.Pending, path string) (submission, error) {
	missing, err := pending.Missing()
	if err != nil {
		return submission{}, err
	}
	if len(missing) > 0 {
		path, err := p.writePending(pending, path)
		return submission{Pending: path, Missing: missing}, err
	}
	err = s.api.Publish(ctx, api.Publication(pending.Change))
	return submission{Published: err == nil}, err
}

func (p *program) writePending(pending *stream.Pending, path string) (string, error) {
	if path == "" {
		path = "pending-" + p.now().UTC().Format("20060102T150405Z") + ".json"
	}
	b, err := json.MarshalIndent(pending, "", " ")
	if err != nil {
		return "", fmt.Errorf("encode pending change: %w", err)
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return "", fmt.Errorf("write pending change: %w", err)
	}
	return path, os.Rename(temp, path)
}

// tell says what became of a change; done is the sentence for when it is public.
func (p *program) tell(sub submission, done string) error {
	if sub.Published {
		return p.s.Printf("%s", done)
	}
	names := map[string]int{}
	for _, m := range sub.Missing {
		names[m.File] = max(names[m.File], m.Need-m.Have)
	}
	most := 0
	for _, n := range names {
		most = max(most, n)
	}
	return p.s.Printf("Nothing is public yet: %s lacks up to %s each.\nGive %s to the next key holder, who runs:\n\n  livepatch-admin sign %s",
		strings.TrimSpace(cli.Count(len(names), "file")), cli.Count(most, "signature"), sub.Pending, sub.Pending)
}
