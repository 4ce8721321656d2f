package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var packages = []string{"livepatch", "livepatch-admin", "livepatch-server"}

// unit reads a unit file as "key" -> values; comments are out.
func unit(t *testing.T, path string) map[string][]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			settings[key] = append(settings[key], strings.Fields(value)...)
		}
	}
	return settings
}

// TestDaemonUnitLetsItWork: what hardening must leave to the daemon. Each of these
// was looked up in systemd.exec(5); a unit that breaks one still starts, and fails
// at the first livepatch.
func TestDaemonUnitLetsItWork(t *testing.T) {
	t.Parallel()
	u := unit(t, "livepatch/livepatchd.service")
	for key, wants := range map[string][]string{
		"CapabilityBoundingSet":      {"CAP_SYS_MODULE", "CAP_SYSLOG", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH"},
		"SystemCallFilter":           {"@system-service", "finit_module", "delete_module"},
		"RestrictAddressFamilies":    {"AF_UNIX", "AF_INET", "AF_INET6"},
		"DeviceAllow":                {"/dev/kmsg", "r"},
		"RequiresMountsFor":          {"/var/lib/livepatch"},
		"ConditionKernelCommandLine": {"!livepatch=off"},
	} {
		for _, want := range wants {
			if !slices.Contains(u[key], want) {
				t.Errorf("%s=%v lacks %s", key, u[key], want)
			}
		}
	}
	for _, breaks := range []string{
		"ProtectKernelModules", "ProtectKernelTunables", "ProtectKernelLogs", "PrivateDevices", "ProtectProc", "ProcSubset",
		"PrivateUsers", "PrivateNetwork", "DynamicUser", "User",
	} {
		if v, set := u[breaks]; set {
			t.Errorf("%s=%v breaks the daemon", breaks, v)
		}
	}
}

// TestDaemonUnitOrder: before the network, without a cycle through sysinit.target,
// and stopped by a shutdown while /var is there.
func TestDaemonUnitOrder(t *testing.T) {
	t.Parallel()
	u := unit(t, "livepatch/livepatchd.service")
	if !slices.Equal(u["DefaultDependencies"], []string{"no"}) {
		t.Error("default dependencies order the daemon after sysinit.target, and cloud-init the network before that: a cycle")
	}
	for _, want := range []string{"network-pre.target", "shutdown.target"} {
		if !slices.Contains(u["Before"], want) {
			t.Errorf("Before=%v lacks %s", u["Before"], want)
		}
	}
	if !slices.Contains(u["Wants"], "network-pre.target") || !slices.Contains(u["Conflicts"], "shutdown.target") || !slices.Contains(u["After"], "local-fs.target") {
		t.Errorf("Wants=%v Conflicts=%v After=%v", u["Wants"], u["Conflicts"], u["After"])
	}
	marker := unit(t, "livepatch/livepatchd-shutdown.service")
	if !slices.Contains(marker["Before"], "livepatchd.service") {
		t.Error("the marker is written before the daemon has stopped")
	}
}

// contents are the files of a package as its configuration lists them.
func contents(t *testing.T, name string) (scripts map[string]string, files []struct{ Src, Dst, Type string }) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(name, "nfpm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Scripts  map[string]string
		Contents []struct{ Src, Dst, Type string }
	}
	if err := yaml.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	return config.Scripts, config.Contents
}

func TestConfigurations(t *testing.T) {
	t.Parallel()
	for _, name := range packages {
		scripts, files := contents(t, name)
		for _, f := range files {
			if strings.HasPrefix(f.Src, "packaging/") {
				if _, err := os.Stat(filepath.Join("..", f.Src)); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			// What an administrator edits must survive an upgrade.
			if strings.HasPrefix(f.Dst, "/etc/") && f.Type != "config" {
				t.Errorf("%s: %s is not a conffile", name, f.Dst)
			}
		}
		for kind, path := range scripts {
			b, err := os.ReadFile(filepath.Join("..", path))
			if err != nil {
				t.Errorf("%s: %s: %v", name, kind, err)
				continue
			}
			if !strings.HasPrefix(string(b), "#!/bin/sh\nset -e\n") {
				t.Errorf("%s does not end at its first error", path)
			}
			if out, err := exec.Command("sh", "-n", filepath.Join("..", path)).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", path, err, out)
			}
		}
	}
}

// TestUnloadStaysAPersonsWish: no maintainer script takes a fix out of the kernel.
func TestUnloadStaysAPersonsWish(t *testing.T) {
	t.Parallel()
	for _, name := range packages {
		scripts, _ := contents(t, name)
		for _, path := range scripts {
			b, err := os.ReadFile(filepath.Join("..", path))
			if err != nil {
				t.Fatal(err)
			}
			if regexp.MustCompile(`rmmod|modprobe -r|livepatch (unload|disable)`).Match(b) {
				t.Errorf("%s unloads or disables", path)
			}
		}
	}
}

// TestManualNamesEverySetting holds livepatch.yaml(5) to the agent's table.
func TestManualNamesEverySetting(t *testing.T) {
	t.Parallel()
	table, err := os.ReadFile("../internal/agent/config.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("livepatch/livepatch.yaml.5")
	if err != nil {
		t.Fatal(err)
	}
	keys := regexp.MustCompile(`\{key: "([a-z-]+)"(?:, def: "([^"]+)")?`).FindAllStringSubmatch(string(table), -1)
	if len(keys) < 5 {
		t.Fatalf("found only %d settings in the agent's table; has it moved?", len(keys))
	}
	for _, k := range keys {
		entry := regexp.MustCompile(`(?m)^\.BR .*\b` + regexp.QuoteMeta(k[1]) + `\b.*$`).FindString(string(page))
		if entry == "" || !strings.Contains(entry, k[2]) {
			t.Errorf("the manual has %q for %s with the default %q", entry, k[1], k[2])
		}
	}
}
