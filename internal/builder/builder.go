package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"livepatch"
	"livepatch/internal/elfdiff"
	"livepatch/internal/elfobj"
	"livepatch/internal/klp"
)

// Builder builds livepatch modules. The zero value of a field other than Cache is
// usable.
type Builder struct {
	// Cache is the folder for packages and prepared sources. It may be deleted at any
	// time while no build runs.
	Cache string
	// Offline uses only what is in Cache.
	Offline bool
	// Run runs programs; Exec when nil.
	Run Runner
	// Jobs bounds how many compilers run at a time; 2 when 0.
	Jobs int
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Progress is told of each phase as it begins, in words; may be nil.
	Progress func(phase string)
}

// Request is one module to build.
type Request struct {
	// Release is the kernel, as uname -r prints it.
	Release string
	// Diffs are unified diffs with -p1 paths, applied in order.
	Diffs [][]byte
	// Source is a prepared or pristine source tree to use instead of the
	// distribution's; it is configured and prepared in place. Empty for the
	// distribution's.
	Source string
	// Name is the module's name; letters, digits and underscores, at most 55.
	Name string
	// Fixes are the vulnerabilities to list in .modinfo, beside those that the diffs
	// name.
	Fixes []string
}

// Build makes the module. The report is not nil, even with an error; a *RefusedError
// means that the fix cannot be livepatched as it is. Nothing is written outside the
// cache.
func (bd *Builder) Build(ctx context.Context, req Request) (module []byte, report *Report, err error) {
	b := &build{Builder: bd.withDefaults(), req: req, added: map[string]*elfdiff.Item{}}
	b.report = &Report{Kernel: req.Release, Objects: []string{}, Functions: []Function{}, Refused: []Refusal{}}
	module, err = b.run(ctx)
	var refused *RefusedError
	if errors.As(err, &refused) {
		for i, r := range refused.Refused {
			refused.Refused[i].Line = b.lines[r.File]
		}
		b.report.Refused = refused.Refused
	}
	b.report.SizeBytes = int64(len(module))
	return module, b.report, err
}

func (bd Builder) withDefaults() *Builder {
	if bd.Run == nil {
		bd.Run = Exec
	}
	if bd.Now == nil {
		bd.Now = time.Now
	}
	if bd.Progress == nil {
		bd.Progress = func(string) {}
	}
	if bd.Jobs == 0 {
		bd.Jobs = 2
	}
	return &bd
}

// build is one build under way.
type build struct {
	*Builder
	req    Request
	report *Report
	kernel *kernel
	tree   *Tree
	units  []*unit
	// lines says where the fix changes each file first.
	lines map[string]int
	// added are the functions and variables that the fix adds with external linkage,
	// by name.
	added map[string]*elfdiff.Item
}

func (b *build) run(ctx context.Context) ([]byte, error) {
	if !livepatch.ValidModuleName(b.req.Name) {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "module name %q is not one the kernel accepts: use up to 55 letters, digits and underscores", b.req.Name)
	}
	work, err := os.MkdirTemp("", "livepatch-build-")
	if err != nil {
		return nil, fmt.Errorf("make a working folder: %w", err)
	}
	defer os.RemoveAll(work) //nolint:errcheck // a temporary folder
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	if err := writeHeaders(work); err != nil {
		return nil, err
	}
	f, err := applyFix(ctx, b.Run, b.tree.Dir, work, b.req.Diffs)
	if err != nil {
		return nil, err
	}
	b.lines = f.lines
	if err := b.compile(ctx, f, work); err != nil {
		return nil, err
	}
	if err := b.diff(f); err != nil {
		return nil, err
	}
	return b.write(ctx, f, work)
}

// prepare gets the kernel and its prepared sources.
func (b *build) prepare(ctx context.Context) error {
	defer stopwatch(b.Now, &b.report.Seconds.Prepare)()
	b.Progress("prepare")
	unlock, err := lock(filepath.Join(b.Cache, "build.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	packages := &Packages{Run: b.Run, Dir: b.Cache, Offline: b.Offline}
	shipped, err := packages.Kernel(ctx, b.req.Release)
	if err != nil {
		return err
	}
	config, err := os.ReadFile(shipped.Config())
	if err != nil {
		return fmt.Errorf("read kernel configuration: %w", err)
	}
	if err := checkSupported(shipped.Config()); err != nil {
		return err
	}
	cc, err := compiler(ctx, b.Run, shipped.Config())
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(b.req.Source)
	if err != nil {
		return err
	}
	if b.req.Source == "" {
		dir = filepath.Join(b.Cache, "trees", treeName(shipped.Version, shipped.Release, cc, config))
		if err := b.unpack(ctx, packages, shipped, dir); err != nil {
			return err
		}
	}
	b.tree = &Tree{Dir: dir, CC: cc, Release: shipped.Release, Run: b.Run, Jobs: b.Jobs}
	if err := b.tree.Prepare(ctx, shipped); err != nil {
		return err
	}
	if b.kernel, err = openKernel(shipped); err != nil {
		return err
	}
	b.report.BuildID = b.kernel.buildID
	return nil
}

// unpack puts the sources into dir unless they are there.
func (b *build) unpack(ctx context.Context, p *Packages, s *Shipped, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	b.Progress("fetch sources")
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return fmt.Errorf("prepare the cache: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("prepare the cache: %w", err)
	}
	if err := p.Sources(ctx, s, part); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// compile makes the objects of every source file that the fix reaches.
func (b *build) compile(ctx context.Context, f *fix, work string) error {
	defer stopwatch(b.Now, &b.report.Seconds.Compile)()
	b.Progress("compile")
	sources, err := b.sources(ctx, f)
	if err != nil {
		return err
	}
	cmds, failed, err := b.tree.Commands(ctx, sources)
	if err != nil {
		return err
	}
	var refused RefusedError
	for _, src := range sources {
		if said, ok := failed[src]; ok {
			refused.Refused = append(refused.Refused, Refusal{
				Code: elfdiff.ReasonNotBuilt, File: src, Reason: src + " is not part of this kernel: " + said,
				Advice: "Leave it out of the fix for this kernel.",
			})
			continue
		}
		u := &unit{source: src, cmd: cmds[src]}
		name := u.cmd.Module()
		if name == "" {
			name = "vmlinux"
		}
		if u.object, err = b.kernel.object(ctx, name); err != nil {
			return err
		}
		b.units = append(b.units, u)
	}
	if len(refused.Refused) > 0 {
		return &refused
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(b.Jobs)
	for _, u := range b.units {
		for _, v := range []variant{patched, original, plain} { // what may be refused first
			g.Go(func() error { return b.compileVariant(gctx, f, work, u, v) })
		}
	}
	return g.Wait()
}

// diff compares the objects and proves the originals.
func (b *build) diff(f *fix) error {
	defer stopwatch(b.Now, &b.report.Seconds.Diff)()
	b.Progress("compare")
	var refused RefusedError
	changed := 0
	for _, u := range b.units {
		if err := u.diff(); err != nil {
			return err
		}
		changed += len(u.result.Changed)
	}
	for _, u := range b.units {
		problems := u.result.Problems
		if changed > 0 { // a file of several may hold nothing that matters
			problems = slices.DeleteFunc(slices.Clone(problems), func(p elfdiff.Problem) bool { return p.Code == elfdiff.ReasonNoChange })
		}
		refused.Refused = append(refused.Refused, refusals(u.source, problems)...)
		refused.Refused = append(refused.Refused, u.prove()...)
		for _, it := range u.result.Include {
			if u.result.Original(it) == nil && it.Name != "" && it.Symbol.Bind != elfobj.STB_LOCAL {
				b.added[it.Name] = it
			}
		}
	}
	if len(refused.Refused) > 0 {
		return &refused
	}
	return nil
}

// write makes the module of the units that change something.
func (b *build) write(ctx context.Context, f *fix, work string) ([]byte, error) {
	defer stopwatch(b.Now, &b.report.Seconds.Write)()
	b.Progress("write")
	b.describe()
	var units []*unit
	for _, u := range b.units {
		if len(u.result.Changed) > 0 {
			units = append(units, u)
		}
	}
	fixes := append(slices.Clone(b.req.Fixes), f.cves...)
	slices.Sort(fixes)
	var info [][2]string
	for _, name := range slices.Compact(fixes) {
		info = append(info, [2]string{"fixes", name})
	}
	stub, names, err := b.compileTables(ctx, work, units, info)
	if err != nil {
		return nil, err
	}
	in := klp.Input{Tables: stub, Names: names, Version: b.version}
	if v, _ := configValue(b.kernel.shipped.Config(), "CONFIG_MODVERSIONS"); v != "y" {
		in.Version = nil
	}
	for _, u := range units {
		in.Fragments = append(in.Fragments, klp.Fragment{Object: u.object.name, Result: u.result, Bind: b.bind(ctx, u)})
	}
	module, err := klp.Write(in)
	var key *klp.StaticKeyError
	if errors.As(err, &key) {
		return nil, refuse(elfdiff.ReasonStaticKey, f.files[0], key.Function, err.Error()+", whose state replaced code could not follow",
			"Use static_key_enabled() in the fix instead.")
	}
	if err != nil {
		return nil, err
	}
	return module, b.check(module)
}

func (b *build) version(name string) (uint32, bool) {
	e, ok := b.kernel.exports[name]
	return e.crc, ok
}

func (b *build) compileTables(ctx context.Context, work string, units []*unit, info [][2]string) (*elfobj.File, map[string]*elfdiff.Item, error) {
	source, names, err := tables(units, b.report.Objects, info)
	if err != nil {
		return nil, nil, err
	}
	cmd, err := b.tree.moduleCommand()
	if err != nil {
		return nil, nil, fmt.Errorf("learn how modules are compiled: %w", err)
	}
	base := filepath.Join(work, b.req.Name)
	if err := os.WriteFile(base+".c", source, 0o644); err != nil {
		return nil, nil, err
	}
	if err := b.tree.compile(ctx, b.tree.Dir, cmd, base+".c", base+".o", "-g0"); err != nil {
		return nil, nil, fmt.Errorf("compile the module's tables: %w", err)
	}
	raw, err := os.ReadFile(base + ".o")
	if err != nil {
		return nil, nil, err
	}
	f, err := elfobj.Parse(raw)
	return f, names, err
}

// describe fills in the report's lists.
func (b *build) describe() {
	for _, u := range b.units {
		name := u.object.name
		if len(u.result.Changed) > 0 && !slices.Contains(b.report.Objects, name) {
			b.report.Objects = append(b.report.Objects, name)
		}
		for _, p := range u.result.Changed {
			b.report.Functions = append(b.report.Functions, Function{Name: p.Old.Name, Object: name, Kind: "changed"})
		}
		for _, name := range u.newExports() {
			b.report.Notes = append(b.report.Notes, u.source+" exports "+name+", which only the files of this fix can use")
		}
		for _, it := range u.result.AddressTaken() {
			b.report.Notes = append(b.report.Notes, u.source+" takes the address of the new function "+it.Name+": if anything keeps it, the livepatch may be disabled but not removed")
		}
		for _, it := range u.result.New {
			b.report.Functions = append(b.report.Functions, Function{Name: it.Name, Object: name, Kind: "new"})
		}
	}
}

// check reads the module as a stranger would, and holds it against what was meant.
func (b *build) check(module []byte) error {
	p, err := elfobj.ParsePatch(module)
	if err != nil {
		return fmt.Errorf("check the module: %w", err)
	}
	release, _, _ := strings.Cut(p.Module.VerMagic, " ")
	if p.Module.Name != b.req.Name || release != b.req.Release || !p.Module.Replace {
		return fmt.Errorf("check the module: it calls itself %s for kernel %s, replace %v", p.Module.Name, release, p.Module.Replace)
	}
	listed, meant := 0, 0
	for _, o := range p.Objects {
		listed += len(o.Functions)
	}
	for _, fn := range b.report.Functions {
		if fn.Kind == "changed" {
			meant++
		}
	}
	if listed != meant {
		return fmt.Errorf("check the module: it replaces %d functions, not %d", listed, meant)
	}
	f, err := elfobj.Parse(module)
	if err != nil {
		return fmt.Errorf("check the module: %w", err)
	}
	for _, s := range f.Symbols {
		if s.Shndx == elfobj.SHN_LIVEPATCH {
			b.report.Symbols++
		}
	}
	return nil
}
