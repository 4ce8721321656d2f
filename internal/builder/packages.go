package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"livepatch"
)

// Packages finds a distribution's kernel packages. Debian and Ubuntu differ in
// names only: both are served by apt.
type Packages struct {
	// Run runs apt-get, apt-cache, dpkg-deb and tar.
	Run Runner
	// Dir is the cache folder.
	Dir string
	// Offline forbids everything that is not in the cache.
	Offline bool
}

// Shipped is a distribution's kernel, unpacked.
type Shipped struct {
	Release string `json:"release"`
	// Version is the source package's version, for example 6.1.170-3.
	Version string `json:"version"`
	// Series names the source package: 6.1 of linux-source-6.1.
	Series string `json:"series"`
	// Dir has what the packages install.
	Dir string `json:"-"`
}

// Vmlinuz is the path of the kernel image.
func (s *Shipped) Vmlinuz() string { return filepath.Join(s.Dir, "boot", "vmlinuz-"+s.Release) }

// Config is the path of the configuration it was built with.
func (s *Shipped) Config() string { return filepath.Join(s.Dir, "boot", "config-"+s.Release) }

// Symvers is the path of the list of exported symbols and their checksums.
func (s *Shipped) Symvers() string {
	return filepath.Join(s.Dir, "usr/src/linux-headers-"+s.Release, "Module.symvers")
}

var seriesRE = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// Kernel returns the kernel of this release, from the cache or from the packages.
func (p *Packages) Kernel(ctx context.Context, release string) (*Shipped, error) {
	if err := (livepatch.KernelTarget{Release: release, Arch: "amd64"}).Validate(); err != nil {
		return nil, err
	}
	s := &Shipped{Release: release, Dir: filepath.Join(p.Dir, "kernels", release)}
	if b, err := os.ReadFile(filepath.Join(s.Dir, "kernel.json")); err == nil {
		return s, json.Unmarshal(b, s)
	}
	if p.Offline {
		return nil, livepatch.Errorf(livepatch.CodeNotFound, "kernel %s is not in the cache: build once for it without --offline", release)
	}
	version, err := p.version(ctx, "linux-image-"+release)
	if err != nil {
		return nil, err
	}
	s.Version, s.Series = version, seriesRE.FindString(release)
	tmp := s.Dir + ".part"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return nil, fmt.Errorf("prepare the cache: %w", err)
	}
	names := []string{"linux-image-" + release, "linux-headers-" + release}
	if p.exists(ctx, "linux-modules-"+release) { // Ubuntu keeps modules and config apart
		names = append(names, "linux-modules-"+release)
	}
	for _, name := range names {
		deb, err := p.download(ctx, name, version)
		if err != nil {
			return nil, err
		}
		if _, err := p.Run(ctx, "", "dpkg-deb", "-x", deb, tmp); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", name, err)
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "kernel.json"), b, 0o644); err != nil {
		return nil, fmt.Errorf("write the cache: %w", err)
	}
	return s, os.Rename(tmp, s.Dir)
}

// version asks the package manager for the version of a package.
func (p *Packages) version(ctx context.Context, name string) (string, error) {
	out, err := p.Run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err == nil {
		for line := range strings.Lines(string(out)) {
			if v, ok := strings.CutPrefix(line, "Version: "); ok {
				return strings.TrimSpace(v), nil
			}
		}
	}
	return "", livepatch.Errorf(livepatch.CodeNotFound, "the package manager knows no package %s: check the release, or run apt-get update and add the repository that has it", name)
}

func (p *Packages) exists(ctx context.Context, name string) bool {
	_, err := p.version(ctx, name)
	return err == nil
}

// download fetches a package into the cache and returns its path.
func (p *Packages) download(ctx context.Context, name, version string) (string, error) {
	dir := filepath.Join(p.Dir, "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("prepare the cache: %w", err)
	}
	pattern := filepath.Join(dir, name+"_"+strings.ReplaceAll(version, ":", "%3a")+"_*.deb")
	if found, _ := filepath.Glob(pattern); len(found) > 0 {
		return found[0], nil
	}
	if p.Offline {
		return "", livepatch.Errorf(livepatch.CodeNotFound, "package %s %s is not in the cache: build once without --offline", name, version)
	}
	if _, err := p.Run(ctx, dir, "apt-get", "download", "-q", name+"="+version); err != nil {
		return "", livepatch.Errorf(livepatch.CodeNotFound, "package %s %s cannot be downloaded: %w", name, version, err)
	}
	if found, _ := filepath.Glob(pattern); len(found) > 0 {
		return found[0], nil
	}
	return "", fmt.Errorf("the package manager downloaded %s, but no file %s is there", name, pattern)
}

// Sources unpacks the kernel's exact sources into dir, which must not exist.
func (p *Packages) Sources(ctx context.Context, s *Shipped, dir string) error {
	name := "linux-source-" + s.Series
	if !p.exists(ctx, name) && p.exists(ctx, name+".0") {
		name += ".0" // Ubuntu's name
	}
	deb, err := p.download(ctx, name, s.Version)
	if err != nil {
		return err
	}
	tmp := dir + ".package"
	defer os.RemoveAll(tmp)
	if _, err := p.Run(ctx, "", "dpkg-deb", "-x", deb, tmp); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	var tarball string
	err = filepath.WalkDir(tmp, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".tar.") {
			tarball = path
		}
		return err
	})
	if err != nil || tarball == "" {
		return fmt.Errorf("package %s has no source archive: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	_, err = p.Run(ctx, "", "tar", "--extract", "--file", tarball, "--directory", dir, "--strip-components=1")
	return err
}
