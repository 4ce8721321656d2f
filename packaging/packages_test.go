//go:build vm

// These tests build the packages, which takes Debian's tools and a minute: they are
// part of make test, not of go test ./... .

package packaging_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// snapshot copies the sources to a folder of its own, so that an edit made while the
// test runs makes no difference.
func snapshot(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "src")
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		switch name := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(name, ".") || name == "bin" || name == "dist" || name == "out"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, path), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, path), b, info.Mode().Perm())
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// build makes the packages of the sources at src and returns the path of each by
// name.
func build(t *testing.T, src string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(filepath.Join(src, "packaging/build.sh"), dir)
	cmd.Env = append(os.Environ(), "STAMP=false", "SOURCE_DATE_EPOCH=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	built := map[string]string{}
	for _, name := range packages {
		found, err := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", name, found, err)
		}
		built[name] = found[0]
	}
	return built
}

// output runs a command and returns what it prints.
func output(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// TestPackages builds the packages twice, in two places: not a byte differs, and in
// them is what belongs there.
func TestPackages(t *testing.T) {
	here := snapshot(t)
	there := filepath.Join(t.TempDir(), "a", "longer", "path")
	if err := os.CopyFS(there, os.DirFS(here)); err != nil {
		t.Fatal(err)
	}
	first, second := build(t, here), build(t, there)
	for _, name := range packages {
		a, err := os.ReadFile(first[name])
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(second[name])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two builds of the same sources differ", name)
		}
		listing := output(t, "dpkg-deb", "-c", first[name])
		if !strings.Contains(listing, "root/root") || regexp.MustCompile(`(?m)^-......(w.|.w)`).MatchString(listing) {
			t.Errorf("%s has files that others than root may write:\n%s", name, listing)
		}
		if info := output(t, "dpkg-deb", "-f", first[name]); !strings.Contains(info, "Package: "+name+"\n") || !regexp.MustCompile(`(?m)^Version: [0-9]`).MatchString(info) {
			t.Errorf("%s has the fields\n%s", name, info)
		}
	}
	checkContents(t, first)
	checkInstalled(t, first["livepatch"])
}

// checkContents names what each package must bring.
func checkContents(t *testing.T, built map[string]string) {
	t.Helper()
	wants := map[string][]string{
		"livepatch": {
			"./usr/bin/livepatch", "./usr/sbin/livepatchd", "./usr/bin/canonical-livepatch -> livepatch",
			"./usr/lib/systemd/system/livepatchd.service", "./usr/lib/systemd/system/livepatchd-shutdown.service",
			"./etc/livepatch/livepatch.yaml", "./usr/share/man/man1/livepatch-enable.1.gz", "./usr/share/man/man8/livepatchd.8.gz",
			"./usr/share/man/man5/livepatch.yaml.5.gz", "./usr/share/bash-completion/completions/livepatch",
			"./usr/share/zsh/vendor-completions/_livepatch", "./usr/share/fish/vendor_completions.d/livepatch.fish",
			"./usr/share/doc/livepatch/copyright",
		},
		"livepatch-admin":  {"./usr/bin/livepatch-admin", "./usr/share/man/man1/livepatch-admin.1.gz"},
		"livepatch-server": {"./usr/bin/livepatch-server", "./usr/lib/systemd/system/livepatch-server.service", "./etc/livepatch-server/server.yaml"},
	}
	for name, files := range wants {
		listing := output(t, "dpkg-deb", "-c", built[name])
		for _, f := range files {
			if !strings.Contains(listing, " "+f+"\n") {
				t.Errorf("%s lacks %s", name, f)
			}
		}
	}
	for name, file := range map[string]string{"livepatch": "/etc/livepatch/livepatch.yaml", "livepatch-server": "/etc/livepatch-server/server.yaml"} {
		if conffiles := output(t, "dpkg-deb", "-I", built[name], "conffiles"); !strings.Contains(conffiles, file+"\n") {
			t.Errorf("%s: conffiles are %q", name, conffiles)
		}
	}
}

// checkInstalled unpacks the client's package and looks at it as the system would:
// systemd reads the units, man the pages, and the program runs.
func checkInstalled(t *testing.T, livepatch string) {
	t.Helper()
	root := t.TempDir()
	output(t, "dpkg-deb", "-x", livepatch, root)
	if got := output(t, filepath.Join(root, "usr/bin/canonical-livepatch"), "--version"); !strings.HasPrefix(got, "canonical-livepatch ") {
		t.Errorf("canonical-livepatch --version prints %q", got)
	}
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", "--root="+root, "livepatchd.service")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "Unknown") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	pages, err := filepath.Glob(filepath.Join(root, "usr/share/man/man*/*.gz"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no manual pages: %v", err)
	}
	for _, page := range pages {
		if warnings := output(t, "sh", "-c", `zcat -f "$1" | LC_ALL=C.UTF-8 groff -man -Tutf8 -ww -z`, "sh", page); warnings != "" {
			t.Errorf("%s: %s", filepath.Base(page), warnings)
		}
	}
}
