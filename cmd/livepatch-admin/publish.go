package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/cli"
	"livepatch/internal/elfobj"
	"livepatch/internal/kimage"
	"livepatch/internal/stream"
)

// publishFlags are the flags of publish.
type publishFlags struct {
	fixes      []string
	source     string
	kernel     string
	arch       string
	images     []string
	buildIDs   []string
	version    string
	signModule bool
	fewer      bool
	dryRun     bool
	plan       api.Plan
}

// published is the result of publish.
type published struct {
	Kernel    livepatch.KernelTarget `json:"kernel"`
	Livepatch livepatch.Livepatch    `json:"livepatch"`
	// DryRun tells that nothing was uploaded, Already that it was public before.
	DryRun  bool `json:"dry_run,omitempty"`
	Already bool `json:"already_published,omitempty"`
	// Held tells that nobody gets it before somebody starts its rollout.
	Held bool `json:"held,omitempty"`
	submission
}

func (p *program) publish() *cobra.Command {
	var f publishFlags
	c := &cobra.Command{
		Use:   "publish MODULE.ko --fixes CVE:PRIORITY,...",
		Short: "Sign a livepatch and offer it to the machines that run its kernel",
		Long: `Sign a livepatch module and offer it to the machines that run its kernel.

The module says itself which kernel it is for and what it replaces; what is not a livepatch module for
that kernel is refused. Which binary of the kernel it is for says the build id: of the images given by
--kernel-image, of those given by --build-id, else of /boot/vmlinuz-RELEASE on this machine.

Livepatches are cumulative: --fixes lists everything that the module fixes, what earlier versions fixed
included. Publishing the same module in the same way again changes nothing; it sends the module to a server
that has lost it.`,
		Example: examples(`
# Look first
livepatch-admin publish lp.ko --fixes CVE-2026-1234:high --kernel-image vmlinuz --dry-run

# Publish, with the sources it was built from
livepatch-admin publish lp.ko --fixes CVE-2026-1234:high,CVE-2026-1300:critical --source ./lp`),
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(f.fixes) == 0 {
				return cli.Usagef(c, "say what the module fixes: --fixes CVE-2026-1234:high")
			}
			if f.plan.Expedite && f.plan.Reason == "" {
				return cli.Usagef(c, "say why it is expedited: --reason TEXT; it goes to the audit log")
			}
			if f.plan.Expedite && f.plan.Hold {
				return cli.Usagef(c, "a rollout is either held (--hold) or expedited (--expedite)")
			}
			return cannot("publish "+filepath.Base(args[0]), p.runPublish(c.Context(), args[0], f))
		},
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.fixes, "fixes", nil, "what it fixes, as `CVE:PRIORITY,...`; priorities are critical, high, medium, low, negligible")
	fl.StringVar(&f.source, "source", "", "`DIR|FILE` it was built from, published beside it")
	fl.StringVar(&f.kernel, "kernel", "", "refuse a module that is not for this kernel `RELEASE`")
	fl.StringVar(&f.arch, "arch", "", "the distribution's name of the `ARCH`itecture (default what the module is built for)")
	fl.StringArrayVar(&f.images, "kernel-image", nil, "`VMLINUZ` that it is for; may be repeated")
	fl.StringArrayVar(&f.buildIDs, "build-id", nil, "build id in `HEX` of a kernel that it is for; may be repeated")
	fl.StringVar(&f.version, "version", "", "`VERSION` to publish it as (default the next major version)")
	fl.BoolVar(&f.signModule, "sign-module", false, "append a signature that kernels check, made with the key of 'keys module-cert'")
	fl.BoolVar(&f.fewer, "allow-fewer-fixes", false, "publish although an earlier version fixes what this one does not")
	fl.StringVar(&f.plan.Policy, "policy", "", "roll it out under the policy of this `NAME` (default the server's setting rollout-policy)")
	fl.BoolVar(&f.plan.Hold, "hold", false, "publish it, and let nobody have it until 'rollout start'")
	fl.BoolVar(&f.plan.Expedite, "expedite", false, "offer it to everybody at once, in freezes too; wants --reason")
	fl.StringVar(&f.plan.Reason, "reason", "", "why it is expedited, in a sentence for the audit log")
	fl.BoolVar(&f.dryRun, "dry-run", false, "check everything, show what would be published, and stop")
	return c
}

func (p *program) runPublish(ctx context.Context, path string, f publishFlags) error {
	fixes, err := parseFixes(f.fixes)
	if err != nil {
		return err
	}
	progress := p.s.Progress("reading " + filepath.Base(path))
	defer progress.Stop()
	s, err := p.connect()
	if err != nil {
		return err
	}
	module, err := readBounded(path, livepatch.MaxModuleSize)
	if err != nil {
		return err
	}
	if f.signModule {
		if module, err = signWithKey(module, s.Keys); err != nil {
			return err
		}
	}
	k, m, err := identify(module, f)
	if err != nil {
		return err
	}
	progress.Step("finding the kernel's build id")
	ids, err := p.buildIDs(k, f)
	if err != nil {
		return err
	}
	progress.Step("compressing")
	archive, blob, err := stream.CompressModule(module)
	if err != nil {
		return err
	}
	lp := livepatch.Livepatch{BuildIDs: ids, Module: m, Archive: blob, Fixes: fixes, Published: p.now().UTC().Truncate(1e9)}
	lp.Archive.Name = m.Name + ".ko.zst"
	source, err := packSource(f.source)
	if err != nil {
		return err
	}
	lp.Source = source.blob
	w := publishing{p: p, s: s, kernel: k, flags: f, lp: lp, archive: archive, source: source.content, progress: progress}
	result, err := w.do(ctx)
	progress.Stop()
	if err != nil {
		return err
	}
	return p.print(result, func() error { return p.tellPublished(result) })
}

// identify reads the module and decides which kernel it is for.
func identify(module []byte, f publishFlags) (livepatch.KernelTarget, livepatch.Module, error) {
	m, err := elfobj.ParseModule(module)
	if err != nil {
		return livepatch.KernelTarget{}, m, err
	}
	release, _, _ := strings.Cut(m.VerMagic, " ")
	if f.kernel != "" && f.kernel != release {
		return livepatch.KernelTarget{}, m, livepatch.Errorf(livepatch.CodeWrongKernel, "module %s is built for kernel %s, not for %s", m.Name, release, f.kernel)
	}
	arch := f.arch
	if arch == "" {
		file, err := elfobj.Parse(module)
		if err != nil {
			return livepatch.KernelTarget{}, m, err
		}
		if arch = debianArch(file.Machine); arch == "" {
			return livepatch.KernelTarget{}, m, livepatch.Errorf(livepatch.CodeUnsupported, "module %s is for a machine without livepatching (%v); name it with --arch if that is wrong", m.Name, file.Machine)
		}
	}
	k := livepatch.KernelTarget{Release: release, Arch: arch}
	return k, m, k.Validate()
}

// buildIDs collects the build ids of the kernels that the module is for.
func (p *program) buildIDs(k livepatch.KernelTarget, f publishFlags) ([]string, error) {
	ids := []string{}
	for _, id := range f.buildIDs {
		id = strings.ToLower(id)
		if !livepatch.ValidBuildID(id) {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "build id %q is not hex of 8 to 64 digits", id)
		}
		ids = append(ids, id)
	}
	images := f.images
	if len(ids) == 0 && len(images) == 0 {
		installed := filepath.Join(p.boot, "vmlinuz-"+k.Release)
		if _, err := os.Stat(installed); err != nil {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "the build id of %s is not known: give --kernel-image VMLINUZ or --build-id HEX, or install the kernel's package so that %s is there", k.Release, installed)
		}
		images = []string{installed}
	}
	for _, path := range images {
		id, err := imageBuildID(path, k.Release)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// imageBuildID reads the build id of a kernel image, which must be of this release.
func imageBuildID(path, release string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read kernel image: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read kernel image: %w", err)
	}
	img, err := kimage.Read(f, fi.Size())
	if err != nil {
		return "", fmt.Errorf("read kernel image %s: %w", path, err)
	}
	if img.Release != release {
		return "", livepatch.Errorf(livepatch.CodeWrongKernel, "%s is kernel %s, but the module is built for %s", path, img.Release, release)
	}
	return img.BuildID, nil
}

func parseFixes(list []string) ([]livepatch.Fix, error) {
	var fixes []livepatch.Fix
	for _, s := range list {
		f, err := livepatch.ParseFix(s)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(fixes, func(g livepatch.Fix) bool { return g.CVE == f.CVE }) {
			return nil, livepatch.Errorf(livepatch.CodeInvalid, "%s is listed twice", f.CVE)
		}
		fixes = append(fixes, f)
	}
	return fixes, nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "%s has more than %s", path, cli.Bytes(limit))
	}
	return b, nil
}

// publishing is one livepatch on its way to the stream.
type publishing struct {
	p        *program
	s        *session
	kernel   livepatch.KernelTarget
	flags    publishFlags
	lp       livepatch.Livepatch
	archive  []byte
	source   []byte
	progress *cli.Progress

	already  bool
	uploaded bool
}

func (w *publishing) do(ctx context.Context) (published, error) {
	w.progress.Step("reading the stream")
	result := published{Kernel: w.kernel}
	sub, err := w.s.submit(ctx, w.p, []livepatch.KernelTarget{w.kernel}, func(v *stream.View) (*stream.Pending, error) {
		return w.change(ctx, v)
	})
	result.Livepatch, result.submission = w.lp, sub
	switch {
	case errors.Is(err, errStop):
		result.Already, result.DryRun = w.already, w.flags.dryRun
		result.Published = w.already
		return result, nil
	case err != nil:
		return result, err
	}
	result.Held = w.flags.plan.Hold
	return result, nil
}

// errStop ends a submission before anything is signed: there is nothing to do.
var errStop = errors.New("nothing to publish")

// change puts the livepatch into the catalogue as it is now.
func (w *publishing) change(ctx context.Context, v *stream.View) (*stream.Pending, error) {
	cat := v.Catalogue(w.kernel)
	for _, was := range cat.Patches {
		if was.Module.SHA256 == w.lp.Module.SHA256 {
			return nil, w.again(ctx, cat, was)
		}
	}
	if err := w.place(cat); err != nil {
		return nil, err
	}
	cat.Patches = append(cat.Patches, w.lp)
	if err := cat.Validate(); err != nil {
		return nil, err
	}
	if w.flags.dryRun {
		return nil, errStop
	}
	if err := w.upload(ctx); err != nil {
		return nil, err
	}
	if err := w.plan(ctx); err != nil {
		return nil, err
	}
	w.progress.Step("signing and publishing")
	return v.SetCatalogue(cat, fmt.Sprintf("publish %s of %s", w.lp.Version, w.kernel.Release), stream.Lifetimes{}, w.p.now())
}

// place decides the version, and holds the fixes against those of the version
// before it for the same binary.
func (w *publishing) place(cat livepatch.Catalogue) error {
	var newest uint32
	var before *livepatch.Livepatch
	for i, was := range cat.Patches {
		newest = max(newest, was.Version.Major)
		sameBinary := slices.ContainsFunc(was.BuildIDs, func(id string) bool { return slices.Contains(w.lp.BuildIDs, id) })
		if was.Withdrawn == nil && sameBinary {
			before = &cat.Patches[i]
		}
	}
	v, err := livepatch.ParseVersion(w.flags.version)
	if err != nil {
		return err
	}
	if v.IsZero() {
		v = livepatch.Version{Major: newest + 1, Minor: 1}
	}
	w.lp.Version = v
	if before == nil {
		return nil
	}
	for _, f := range before.Fixes {
		if slices.ContainsFunc(w.lp.Fixes, func(g livepatch.Fix) bool { return g.CVE == f.CVE }) {
			continue
		}
		switch {
		case !w.lp.Module.Replace:
			// It stacks on the earlier one, whose fixes stay in force.
			w.lp.Fixes = append(w.lp.Fixes, f)
		case !w.flags.fewer:
			return livepatch.Errorf(livepatch.CodeInvalid, "livepatch %s fixes %s, which --fixes does not list, and this module replaces it: list it if the module has the fix (see also --allow-fewer-fixes)", before.Version, f.CVE)
		}
	}
	return nil
}

// plan tells the server how this version is to be rolled out once it is public:
// also when somebody else gives the last signature.
func (w *publishing) plan(ctx context.Context) error {
	plan := w.flags.plan
	plan.Module = w.lp.Module.SHA256
	if !plan.Expedite {
		plan.Reason = ""
	}
	return w.s.api.PlanRollout(ctx, w.kernel, w.lp.Version, plan)
}

// upload sends archive and source, once.
func (w *publishing) upload(ctx context.Context) error {
	if w.uploaded {
		return nil
	}
	w.progress.Step("uploading %s", cli.Bytes(w.lp.Archive.Size))
	if err := w.s.api.PutBlob(ctx, api.BlobArchive, w.lp.Archive, bytes.NewReader(w.archive)); err != nil {
		return err
	}
	if w.source != nil {
		w.progress.Step("uploading %s of source", cli.Bytes(w.lp.Source.Size))
		if err := w.s.api.PutBlob(ctx, api.BlobSource, w.lp.Source, bytes.NewReader(w.source)); err != nil {
			return err
		}
	}
	w.uploaded = true
	return nil
}

func (p *program) tellPublished(r published) error {
	t := details()
	t.Row("livepatch", r.Livepatch.Version.String())
	t.Row("kernel", r.Kernel.String())
	for _, id := range r.Livepatch.BuildIDs {
		t.Row("build id", id)
	}
	t.Row("module", r.Livepatch.Module.Name)
	t.Row("replaces", functions(r.Livepatch.Module))
	t.Row("fixes", fixList(r.Livepatch.Fixes))
	t.Row("size", fmt.Sprintf("%s, %s to download", cli.Bytes(r.Livepatch.Module.Size), cli.Bytes(r.Livepatch.Archive.Size)))
	t.Row("signed for kernels", yesNo(r.Livepatch.Module.Signed))
	if err := t.Write(p.s); err != nil {
		return err
	}
	switch {
	case r.Already:
		return p.s.Printf("This very module was published already; nothing changed. How it is rolled out is changed with 'livepatch-admin rollout'.")
	case r.DryRun:
		return p.s.Printf("Dry run: nothing was uploaded or published.")
	}
	next := "How it fares: livepatch-admin rollout show"
	if r.Held {
		next = "It is held: nobody gets it. Start it with: livepatch-admin rollout start"
	}
	return p.tell(r.submission, fmt.Sprintf("Published livepatch %s for %s.\n%s %s %s", r.Livepatch.Version, r.Kernel.Release, next, r.Kernel.Release, r.Livepatch.Version))
}

func functions(m livepatch.Module) string {
	var names []string
	for _, o := range m.Objects {
		for _, f := range o.Functions {
			names = append(names, o.Name+":"+f)
		}
	}
	return strings.Join(names, " ")
}

func fixList(fixes []livepatch.Fix) string {
	names := make([]string, len(fixes))
	for i, f := range fixes {
		names[i] = fmt.Sprintf("%s (%s)", f.CVE, f.Priority)
	}
	return strings.Join(names, ", ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
