package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"livepatch"
)

// livepatchDir is where the kernel shows its livepatches
// (Documentation/ABI/testing/sysfs-kernel-livepatch).
const livepatchDir = "sys/kernel/livepatch"

// Patch is a livepatch that the kernel knows: enabled, on its way in, or on its
// way out.
type Patch struct {
	// Name is the module's name.
	Name    string
	Enabled bool
	// Transition tells that tasks are still being moved, to the patched state
	// when Enabled, else away from it.
	Transition bool
	// Objects and their functions, by name. A function that occurs n times in an
	// object is named once.
	Objects []livepatch.Object
}

// Loaded reads the livepatches, by name. A kernel without CONFIG_LIVEPATCH has
// none.
func (s *System) Loaded() ([]Patch, error) {
	entries, err := os.ReadDir(s.path(livepatchDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list livepatches: %w", err)
	}
	var patches []Patch
	for _, e := range entries {
		if !e.IsDir() || !livepatch.ValidModuleName(e.Name()) {
			continue
		}
		p, err := s.Patch(e.Name())
		if livepatch.CodeOf(err) == livepatch.CodeNotFound {
			continue // it went between the two reads
		}
		if err != nil {
			return nil, err
		}
		patches = append(patches, p)
	}
	return patches, nil
}

// Patch reads one livepatch. The error has CodeNotFound when the kernel shows no
// such patch: never loaded, or disabled and gone (since Linux 5.1 a disabled patch
// leaves /sys/kernel/livepatch at once).
func (s *System) Patch(name string) (Patch, error) {
	if !livepatch.ValidModuleName(name) {
		return Patch{}, livepatch.Errorf(livepatch.CodeInvalid, "%q is not a module's name", name)
	}
	p := Patch{Name: name}
	var err error
	if p.Enabled, err = s.flag(name, "enabled"); err != nil {
		return Patch{}, err
	}
	if p.Transition, err = s.flag(name, "transition"); err != nil {
		return Patch{}, err
	}
	p.Objects = s.objects(name)
	return p, nil
}

func (s *System) flag(name, attr string) (bool, error) {
	b, err := s.read(filepath.Join(livepatchDir, name, attr))
	switch {
	case gone(err):
		return false, livepatch.Errorf(livepatch.CodeNotFound, "livepatch %s is not loaded: %w", name, err)
	case err != nil:
		return false, fmt.Errorf("livepatch %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)) == "1", nil
}

// objects reads what a patch patches: a folder for each object, in it one for
// each function, "name,position" (kernel/livepatch/core.c, klp_init_func). What
// vanishes meanwhile is left out.
func (s *System) objects(name string) []livepatch.Object {
	dirs, _ := os.ReadDir(s.path(livepatchDir, name))
	var objects []livepatch.Object
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		o := livepatch.Object{Name: d.Name(), Functions: []string{}}
		funcs, _ := os.ReadDir(s.path(livepatchDir, name, d.Name()))
		for _, f := range funcs {
			function, _, ok := strings.Cut(f.Name(), ",")
			if n := len(o.Functions); f.IsDir() && ok && (n == 0 || o.Functions[n-1] != function) {
				o.Functions = append(o.Functions, function)
			}
		}
		objects = append(objects, o)
	}
	return objects
}
