package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Module names a module to compile.
type Module struct {
	// Source is the file's name in test/modules without ".c".
	Source string
	// Name is the module's name; ModuleName makes one.
	Name string
	// Version is PATCH_VERSION in the source; 1 when zero.
	Version int
}

// ModuleName is a module's name in the form that operators of this service use:
// lkp_DISTRIBUTION_RELEASE_VERSION.
func ModuleName(release string, version int) string {
	clean := strings.NewReplacer(".", "_", "-", "_").Replace(release)
	return fmt.Sprintf("lkp_Debian_%s_%d", clean, version)
}

// BuildModule compiles a module of test/modules against the headers of k, which must
// be installed, and returns the path of NAME.ko.
func (l *Lab) BuildModule(ctx context.Context, k *Kernel, m Module) (string, error) {
	if m.Version == 0 {
		m.Version = 1
	}
	source, err := os.ReadFile(filepath.Join(l.Root, "test", "modules", m.Source+".c"))
	if err != nil {
		return "", fmt.Errorf("compile module: %w", err)
	}
	headers := "/usr/src/linux-headers-" + k.Release
	// Symbol versions differ when and only when the kernel's interface does.
	symvers, err := os.ReadFile(filepath.Join(headers, "Module.symvers"))
	if err != nil {
		return "", fmt.Errorf("compile module: install linux-headers-%s: %w", k.Release, err)
	}
	kbuild := fmt.Sprintf("obj-m := %s.o\nccflags-y := -DPATCH_VERSION=%d\n", m.Name, m.Version)
	dir, err := l.cached("module-"+m.Name, []string{string(source), string(symvers), kbuild}, func(tmp string) error {
		if err := os.MkdirAll(tmp, 0o755); err != nil {
			return err
		}
		for name, content := range map[string]string{m.Name + ".c": string(source), "Kbuild": kbuild} {
			if err := os.WriteFile(filepath.Join(tmp, name), []byte(content), 0o644); err != nil {
				return err
			}
		}
		_, err := run(ctx, tmp, nil, "make", "-s", "-C", headers, "M="+tmp, "modules")
		return err
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, m.Name+".ko"), nil
}
