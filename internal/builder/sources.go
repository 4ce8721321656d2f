package builder

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"livepatch/internal/elfdiff"
)

// maxUsers bounds how many files are compiled because they include a changed header.
const maxUsers = 60

// sources lists the C files to compile for the fix: those that it changes, and the
// users of the headers that it changes.
func (b *build) sources(ctx context.Context, f *fix) ([]string, error) {
	set := map[string]bool{}
	var headers []string
	for _, name := range f.files {
		switch ext := path.Ext(name); {
		case describes(name):
			b.report.Notes = append(b.report.Notes, name+" is no part of the kernel and was left out")
		case ext == ".h", ext == ".c" && !b.tree.isObject(ctx, name):
			headers = append(headers, name) // what is included, whatever its name
		case ext == ".c":
			set[name] = true
		default:
			return nil, refuse(elfdiff.ReasonFile, name, "", "the fix changes "+name+", which is not C",
				"Leave it out if the fix works without it; or reboot into the fixed kernel.")
		}
	}
	if len(headers) > 0 {
		users, err := b.usersOf(ctx, headers)
		if err != nil {
			return nil, err
		}
		for _, u := range users {
			set[u] = true
		}
	}
	if len(set) == 0 {
		return nil, refuse(elfdiff.ReasonNotBuilt, strings.Join(f.files, " "), "", "nothing that the fix changes is part of this kernel", "Nothing needs to be livepatched here.")
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// describes tells whether a file is documentation or tools, which no kernel runs.
func describes(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "Documentation", "MAINTAINERS", "CREDITS", "samples", "tools", "LICENSES":
		return true
	}
	return slices.Contains([]string{".rst", ".txt", ".yaml", ".dts", ".dtsi"}, path.Ext(name))
}

// usersOf lists the C files of this kernel that include the headers, directly or
// through others.
func (b *build) usersOf(ctx context.Context, headers []string) ([]string, error) {
	b.Progress("find the users of " + strings.Join(headers, ", "))
	index, err := b.tree.includes()
	if err != nil {
		return nil, fmt.Errorf("find the users of changed headers: %w", err)
	}
	var users []string
	for _, name := range index.users(headers) {
		if path.Ext(name) == ".c" && b.tree.isObject(ctx, name) {
			users = append(users, name)
		}
		if len(users) > maxUsers {
			return nil, refuse(elfdiff.ReasonHeader, headers[0], "", fmt.Sprintf("more than %d files of this kernel use %s", maxUsers, strings.Join(headers, ", ")),
				"Put what is new into a C file or a header of its own.")
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if len(users) == 0 {
		return nil, refuse(elfdiff.ReasonNotBuilt, headers[0], "", "no file of this kernel uses "+strings.Join(headers, ", "), "Nothing needs to be livepatched here.")
	}
	return users, nil
}

// objectsMakefile prints the objects that a folder's Makefile names for this
// configuration, those inside composite objects included. It is given to make in the
// tree, with dir set.
const objectsMakefile = `
src := $(dir)
obj := $(dir)
srctree := .
objtree := .
include include/config/auto.conf
-include $(if $(wildcard $(dir)/Kbuild),$(dir)/Kbuild,$(dir)/Makefile)
parts = $(foreach o,$(1),$(o) $($(o:.o=-objs)) $($(o:.o=-y)) $($(o:.o=-m)))
all := $(call parts,$(call parts,$(obj-y) $(obj-m) $(lib-y) $(lib-m)))
$(info $(all))
.PHONY: none
none: ;
`

// everything stands for all objects of a folder.
const everything = "*"

// isObject tells whether kbuild makes an object of its own from the C file in this
// configuration. It asks the Makefile of the file's folder, then those above, which
// may name the file by its path from there.
func (t *Tree) isObject(ctx context.Context, source string) bool {
	if t.objects == nil {
		t.objects = map[string]map[string]bool{}
	}
	object := strings.TrimSuffix(source, ".c") + ".o"
	for dir := path.Dir(source); dir != "."; dir = path.Dir(dir) {
		if t.objects[dir] == nil {
			t.objects[dir] = map[string]bool{}
			out, err := t.Run(ctx, t.Dir, "make", "-s", "-r", "--eval", objectsMakefile, "-f", "/dev/null", "dir="+dir, "none")
			if err != nil { // a Makefile that cannot be asked: better one file too many
				t.objects[dir][everything] = true
			}
			for _, o := range strings.Fields(string(out)) {
				t.objects[dir][o] = true
			}
		}
		if t.objects[dir][everything] || t.objects[dir][strings.TrimPrefix(object, dir+"/")] {
			return true
		}
	}
	return false
}

// includeIndex says what each file of the tree includes, as it is written there.
type includeIndex map[string][]string

// includesFile keeps the index in the tree.
const includesFile = ".livepatch-includes"

var includeRE = regexp.MustCompile(`(?m)^[ \t]*#[ \t]*include[ \t]*[<"]([^">\n]+)[">]`)

// includes reads every C file of the tree once and remembers what they include.
func (t *Tree) includes() (includeIndex, error) {
	index := includeIndex{}
	keep := filepath.Join(t.Dir, includesFile)
	if b, err := os.ReadFile(keep); err == nil && gob.NewDecoder(bytes.NewReader(b)).Decode(&index) == nil {
		return index, nil
	}
	err := filepath.WalkDir(t.Dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(t.Dir, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if foreign(rel) {
				return filepath.SkipDir
			}
			return nil
		}
		if ext := path.Ext(rel); !d.Type().IsRegular() || ext != ".c" && ext != ".h" {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for _, m := range includeRE.FindAllSubmatch(b, -1) {
			index[rel] = append(index[rel], string(m[1]))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(index); err != nil {
		return nil, err
	}
	return index, os.WriteFile(keep, b.Bytes(), 0o644)
}

// foreign tells whether a folder holds nothing of an x86 kernel.
func foreign(dir string) bool {
	if rest, ok := strings.CutPrefix(dir, "arch/"); ok {
		return rest != "x86" && !strings.HasPrefix(rest, "x86/")
	}
	switch dir {
	case "Documentation", "tools", "samples", "scripts", "usr", "rust", ".git":
		return true
	}
	return false
}

// users lists the files that include any of the headers, through others too. A
// written name may match several files by its end: users are rather too many than
// too few, and comparing what they compile to drops the ones that do not matter.
func (index includeIndex) users(headers []string) []string {
	byBase := map[string][]string{} // the last part of an included name: who includes it
	for file, list := range index {
		for _, inc := range list {
			byBase[path.Base(inc)] = append(byBase[path.Base(inc)], file)
		}
	}
	found := map[string]bool{}
	queue := slices.Clone(headers)
	for len(queue) > 0 {
		h := queue[0]
		queue = queue[1:]
		for _, file := range byBase[path.Base(h)] {
			if !found[file] && slices.ContainsFunc(index[file], func(inc string) bool { return means(file, inc, h) }) {
				found[file] = true
				queue = append(queue, file)
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// means tells whether an include of file can lead to the header.
func means(file, inc, header string) bool {
	return path.Join(path.Dir(file), inc) == header || strings.HasSuffix("/"+header, "/"+path.Clean("/" + inc)[1:])
}
