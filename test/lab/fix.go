package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Fix is a real fix of the kernel: what the distribution changed in one file between
// two versions of its source package.
type Fix struct {
	// Package is the source package, "linux-source-6.1".
	Package string
	// From is the version of the kernel that has the bug, To the one without.
	From, To string
	// File is the file's path in the sources.
	File string
	// CVE is what the distribution's changelog calls the fix. Priority is for this
	// project's own demonstration: Debian gives none.
	CVE, Priority string
}

// VsockFix is the fix that the demo shows: a socket's buffer could be made larger
// than its own maximum. The changelog of Debian's linux 6.1.176-1 has it as "vsock: fix
// buffer size clamping order", and it is all that changed in this file.
var VsockFix = Fix{Package: "linux-source-6.1", From: "6.1.170-3", To: "6.1.176-1", File: "net/vmw_vsock/af_vsock.c", CVE: "CVE-2026-46234", Priority: "medium"}

// Diff returns the path of the fix as a unified diff, as `patch -p1` wants it.
func (l *Lab) Diff(ctx context.Context, f Fix) (string, error) {
	dir, err := l.cached("fix-"+f.CVE, []string{f.Package, f.From, f.To, f.File}, func(tmp string) error {
		if err := os.MkdirAll(tmp, 0o755); err != nil {
			return err
		}
		for _, version := range []string{f.From, f.To} {
			if err := l.sourceFile(ctx, f, version, filepath.Join(tmp, version)); err != nil {
				return err
			}
		}
		cmd := exec.CommandContext(ctx, "diff", "-u", "--label", "a/"+f.File, "--label", "b/"+f.File, f.From, f.To)
		cmd.Dir = tmp
		diff, err := cmd.Output()
		// diff exits with 1 when the files differ, which they must.
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			return fmt.Errorf("compare the two versions of %s: %w", f.File, errors.Join(err, errors.New("they do not differ")))
		}
		return os.WriteFile(filepath.Join(tmp, f.CVE+".patch"), diff, 0o644)
	})
	return filepath.Join(dir, f.CVE+".patch"), err
}

// sourceFile writes one file of a version of the source package to path. The package
// goes where livepatch-admin build looks for it, so that it is downloaded once.
func (l *Lab) sourceFile(ctx context.Context, f Fix, version, path string) error {
	packages := filepath.Join(l.Cache, "packages")
	if err := os.MkdirAll(packages, 0o755); err != nil {
		return err
	}
	pattern := filepath.Join(packages, f.Package+"_"+version+"_*.deb")
	if found, _ := filepath.Glob(pattern); len(found) == 0 {
		l.Log("downloading %s %s", f.Package, version)
		if err := download(ctx, packages, f.Package+"="+version); err != nil {
			return err
		}
	}
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return errors.Join(err, fmt.Errorf("%s %s: %d packages in the cache, want one", f.Package, version, len(found)))
	}
	// --occurrence stops reading at the file; the writers before it then end early,
	// which is no failure.
	script := `dpkg-deb --fsys-tarfile "$1" 2>/dev/null | tar --extract --to-stdout --wildcards '*.tar.xz' 2>/dev/null |
		tar --extract --xz --to-stdout --occurrence=1 --wildcards "$2" >"$3"`
	if _, err := run(ctx, "", nil, "sh", "-c", script, "sh", found[0], "*/"+f.File, path); err != nil {
		return err
	}
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return errors.Join(err, fmt.Errorf("%s %s has no file %s", f.Package, version, f.File))
	}
	return nil
}

// BuildFix makes a livepatch of a diff with livepatch-admin build, and returns the
// module's path and what the command said.
func (l *Lab) BuildFix(ctx context.Context, k *Kernel, f Fix, diff, dir, name string) (module, said string, err error) {
	admin, err := l.GoBuild(ctx, "./cmd/livepatch-admin")
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	module = filepath.Join(dir, name+".ko")
	cmd := exec.CommandContext(ctx, admin, "build", "--kernel", k.Release, "--fixes", f.CVE, "--name", name, "-o", module, diff)
	cmd.Env = append(os.Environ(), "LIVEPATCH_CACHE="+l.Cache)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", "", fmt.Errorf("livepatch-admin build: %w\n%s", err, strings.TrimSpace(string(out)))
	}
	return module, string(out), nil
}
