package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
	"livepatch/internal/klp"
)

// unit is one source file of the fix, compiled and compared.
type unit struct {
	source string
	cmd    *Command
	// object is what the file is linked into: vmlinux or a module.
	object *object
	// raw and objects are what the compiler made, by variant.
	raw     [3][]byte
	objects [3]*elfobj.File
	result  *elfdiff.Result
	locator *locator
}

// sectionFlags give every function and variable a section of its own. The numbering
// of private names does not depend on them. Debugging information stays on, for the
// layout of structures.
var sectionFlags = []string{"-ffunction-sections", "-fdata-sections"}

// variant is one of the three objects made from a unit: as shipped, for the proof,
// and original and patched with a section for each function and variable.
type variant int

const (
	plain variant = iota
	original
	patched
)

// compileVariant makes one of the unit's objects. What does not depend on the fix is
// kept in the tree for the next build. A fix that does not compile is a refusal.
func (b *build) compileVariant(ctx context.Context, f *fix, work string, u *unit, v variant) error {
	root, flags := b.tree.Dir, sectionFlags
	name := strings.ReplaceAll(strings.TrimSuffix(u.source, ".c"), "/", "_")
	object := filepath.Join(b.tree.Dir, keptDir, name+fmt.Sprintf(".%d.o", v))
	switch v {
	case plain:
		flags = []string{"-g0"}
	case patched:
		root, flags = f.shadow, append([]string{"-I" + filepath.Join(work, includeDir)}, sectionFlags...)
	}
	if v == patched || b.req.Source != "" { // somebody else's tree may change under us
		object = filepath.Join(work, filepath.Base(object))
	}
	if err := b.compileOnce(ctx, root, u, object, flags); err != nil {
		var ee *ExecError
		if v == patched && errors.As(err, &ee) && ctx.Err() == nil {
			return refuse(elfdiff.ReasonCompile, u.source, "", "the fixed file does not compile: "+firstError(ee.Output),
				"Give all files of the fix together, as the distribution backported it.")
		}
		return fmt.Errorf("compile %s: %w", u.source, err)
	}
	raw, err := os.ReadFile(object)
	if err != nil {
		return err
	}
	parsed, err := elfobj.Parse(raw)
	if err != nil {
		return fmt.Errorf("read object of %s: %w", u.source, err)
	}
	u.raw[v], u.objects[v] = raw, parsed
	return nil
}

// keptDir is where a tree keeps objects of unchanged files. The number counts changes
// of how they are compiled.
const keptDir = ".livepatch-objects-1"

// compileOnce compiles unless the object is there. It appears whole or not at all.
func (b *build) compileOnce(ctx context.Context, root string, u *unit, object string, flags []string) error {
	if _, err := os.Stat(object); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(object), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(object), "part-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // empty but for what failed
	part := filepath.Join(dir, filepath.Base(object))
	if err := b.tree.compile(ctx, root, u.cmd, u.source, part, flags...); err != nil {
		return err
	}
	return os.Rename(part, object)
}

// diff compares the unit's objects, structure layouts included.
func (u *unit) diff() error {
	old, err := elfdiff.NewGraph(u.objects[original])
	if err != nil {
		return fmt.Errorf("read original object of %s: %w", u.source, err)
	}
	new, err := elfdiff.NewGraph(u.objects[patched])
	if err != nil {
		return fmt.Errorf("read patched object of %s: %w", u.source, err)
	}
	u.result = elfdiff.Diff(old, new)
	before, err := elfobj.Layouts(u.raw[original])
	if err != nil {
		return fmt.Errorf("read structures of %s: %w", u.source, err)
	}
	after, err := elfobj.Layouts(u.raw[patched])
	if err != nil {
		return fmt.Errorf("read structures of %s: %w", u.source, err)
	}
	u.result.Problems = append(u.result.Problems, elfdiff.CheckLayouts(before, after)...)
	return nil
}

// newExports lists the symbols that the fix exports and the kernel does not: only the
// fix's own files can use them.
func (u *unit) newExports() []string {
	const prefix = "__ksymtab_"
	had := map[string]bool{}
	for _, s := range u.objects[original].Symbols {
		had[s.Name] = true
	}
	var names []string
	for _, s := range u.objects[patched].Symbols {
		if name, ok := strings.CutPrefix(s.Name, prefix); ok && !had[s.Name] {
			names = append(names, name)
		}
	}
	return names
}

// prove holds the original of every replaced function against the shipped bytes.
func (u *unit) prove() []Refusal {
	u.locator = newLocator(u.object, u.objects[plain])
	if len(u.result.Changed) > 0 && len(u.locator.bases) == 0 {
		return []Refusal{{
			Code: elfdiff.ReasonNotBuilt, File: u.source, Reason: u.source + " compiles, but nothing of it is in " + u.object.name,
			Advice: "Leave it out of the fix for this kernel.",
		}}
	}
	var out []Refusal
	for _, p := range u.result.Changed {
		if err := u.locator.prove(p.Old); err != nil {
			out = append(out, Refusal{
				Code: elfdiff.ReasonIdentity, File: u.source, Function: p.Old.Name, Reason: err.Error(),
				Advice: "Check that the sources, the configuration and the compiler are those of the shipped kernel.",
			})
		}
	}
	return out
}

// bind finds what the unit's livepatch code refers to and does not carry.
func (b *build) bind(ctx context.Context, u *unit) func(*elfdiff.Item) (klp.Binding, error) {
	return func(it *elfdiff.Item) (klp.Binding, error) {
		if it.Kind == elfdiff.Undefined {
			return b.bindName(ctx, u, it.Name)
		}
		old := u.result.Original(it)
		if old == nil {
			return klp.Binding{}, unresolved(u, it.Name, "the fix refers to a new "+it.Name+" in section "+it.Section.Name+", which a livepatch cannot carry")
		}
		if old.Init() {
			return klp.Binding{}, refuse(elfdiff.ReasonInit, u.source, it.Name, "the fix refers to "+it.Name+", which is in memory only while the kernel or module starts", "Reboot into the fixed kernel.")
		}
		if e, ok := b.exported(old.Name); ok && u.object.name == "vmlinux" {
			return e, nil
		}
		i, err := u.locator.locate(old)
		if err != nil {
			return klp.Binding{}, refuse(elfdiff.ReasonAmbiguous, u.source, it.Name, err.Error(), "Avoid the use of "+it.Name+" in the fix, or report this as a shortcoming of the builder.")
		}
		return klp.Binding{Object: u.object.name, Name: u.object.symbols[i].name, Position: u.object.position(i)}, nil
	}
}

func unresolved(u *unit, name, reason string) error {
	return refuse(elfdiff.ReasonSymbol, u.source, name, reason, "Give all files of the fix together; or reboot into the fixed kernel.")
}

// exported tells whether the module loader can resolve the name: vmlinux exports it,
// outside of any namespace.
func (b *build) exported(name string) (klp.Binding, bool) {
	e, ok := b.kernel.exports[name]
	const longest = 55 // what a row of __versions holds
	if !ok || e.module != "vmlinux" || e.namespace != "" || len(name) > longest {
		return klp.Binding{}, false
	}
	return klp.Binding{Exported: name}, true
}

// bindName resolves a name that the unit's object does not define, in the order in
// which it could be meant: another file of the fix, the unit's own module, the
// kernel, another module.
func (b *build) bindName(ctx context.Context, u *unit, name string) (klp.Binding, error) {
	if it := b.added[name]; it != nil {
		return klp.Binding{Item: it}, nil
	}
	if i, ok := u.object.global(name); ok && u.object.name != "vmlinux" {
		return klp.Binding{Object: u.object.name, Name: name, Position: u.object.position(i)}, nil
	}
	if e, ok := b.exported(name); ok {
		return e, nil
	}
	if i, ok := b.kernel.vmlinux.global(name); ok {
		return klp.Binding{Object: "vmlinux", Name: name, Position: b.kernel.vmlinux.position(i)}, nil
	}
	if e, ok := b.kernel.exports[name]; ok && u.object.name != "vmlinux" {
		module := strings.ReplaceAll(filepath.Base(e.module), "-", "_")
		o, err := b.kernel.object(ctx, module)
		if err != nil {
			return klp.Binding{}, err
		}
		if i, ok := o.global(name); ok {
			return klp.Binding{Object: module, Name: name, Position: o.position(i)}, nil
		}
	}
	return klp.Binding{}, unresolved(u, name, "the fix needs "+name+", which this kernel does not have")
}

// tables writes the C source of the module's own part: what klp_enable_patch is
// given, the entry points, struct module and .modinfo. The names lp_new_N stand for
// the replacing functions.
func tables(units []*unit, objects []string, info [][2]string) (source []byte, names map[string]*elfdiff.Item, err error) {
	var b bytes.Buffer
	names = map[string]*elfdiff.Item{}
	b.WriteString("// SPDX-License-Identifier: GPL-2.0\n#define INCLUDE_VERMAGIC\n#include <linux/module.h>\n#include <linux/livepatch.h>\n#include <linux/vermagic.h>\n\n")
	var lists, objs bytes.Buffer
	for i, object := range objects {
		fmt.Fprintf(&lists, "static struct klp_func funcs_%d[] = {\n", i)
		for _, u := range units {
			if u.object.name != object {
				continue
			}
			for _, p := range u.result.Changed {
				at, err := u.locator.locate(p.Old)
				if err != nil {
					return nil, nil, err
				}
				name := fmt.Sprintf("lp_new_%d", len(names))
				names[name] = p.New
				fmt.Fprintf(&b, "extern char %s[];\n", name)
				fmt.Fprintf(&lists, "\t{ .old_name = %q, .new_func = %s, .old_sympos = %d },\n", u.object.symbols[at].name, name, u.object.position(at))
			}
		}
		lists.WriteString("\t{ }\n};\n\n")
		nameField := ""
		if object != "vmlinux" {
			nameField = fmt.Sprintf(".name = %q, ", object)
		}
		callbacks, err := callbackFields(&b, names, units, object)
		if err != nil {
			return nil, nil, err
		}
		fmt.Fprintf(&objs, "\t{ %s.funcs = funcs_%d%s },\n", nameField, i, callbacks)
	}
	b.WriteString("\n")
	b.Write(lists.Bytes())
	fmt.Fprintf(&b, "static struct klp_object objs[] = {\n%s\t{ }\n};\n\n", objs.Bytes())
	b.WriteString(tablesTail)
	for _, kv := range info {
		fmt.Fprintf(&b, "MODULE_INFO(%s, %q);\n", kv[0], kv[1])
	}
	return b.Bytes(), names, nil
}

// callbackFields writes the callbacks of one object: of each kind there can be one.
func callbackFields(decls *bytes.Buffer, names map[string]*elfdiff.Item, units []*unit, object string) (string, error) {
	set := map[string]bool{}
	var fields strings.Builder
	for _, u := range units {
		for _, c := range u.result.Callbacks {
			if u.object.name != object {
				continue
			}
			if set[c.Kind] {
				return "", refuse(elfdiff.ReasonSection, u.source, c.Function.Name, "the fix has two "+c.Kind+" callbacks for "+object, "Call both from one.")
			}
			set[c.Kind] = true
			name := fmt.Sprintf("lp_new_%d", len(names))
			names[name] = c.Function
			fmt.Fprintf(decls, "extern char %s[];\n", name)
			fmt.Fprintf(&fields, ", .callbacks.%s = (void *)%s", c.Kind, name)
		}
	}
	return fields.String(), nil
}

// tablesTail is what every module has. struct module is what modpost would write.
const tablesTail = `static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .replace = true };

static int __init livepatch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit livepatch_exit(void)
{
}

module_init(livepatch_init);
module_exit(livepatch_exit);

__visible struct module __this_module __section(".gnu.linkonce.this_module") = {
	.name = KBUILD_MODNAME,
	.init = init_module,
#ifdef CONFIG_MODULE_UNLOAD
	.exit = cleanup_module,
#endif
	.arch = MODULE_ARCH_INIT,
};

MODULE_LICENSE("GPL");
MODULE_INFO(vermagic, VERMAGIC_STRING);
MODULE_INFO(name, KBUILD_MODNAME);
MODULE_INFO(depends, "");
#ifdef CONFIG_RETPOLINE
MODULE_INFO(retpoline, "Y");
#endif
#ifdef CONFIG_MITIGATION_RETPOLINE
MODULE_INFO(retpoline, "Y");
#endif
MODULE_INFO(livepatch, "Y");
`
