package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/cli"
	"livepatch/internal/stream"
)

func (p *program) patch() *cobra.Command {
	return group("patch", "List, show and withdraw published livepatches",
		p.patchList(), p.patchShow(), p.patchWithdraw())
}

func (p *program) patchList() *cobra.Command {
	var kernel string
	c := &cobra.Command{
		Use:     "list",
		Short:   "List published livepatches",
		Example: examples(`livepatch-admin patch list --kernel 6.1.0-47-cloud-amd64`),
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("list livepatches", err)
			}
			patches, err := s.api.Patches(c.Context(), kernel)
			if err != nil {
				return cannot("list livepatches", err)
			}
			return p.print(patches, func() error {
				t := cli.NewTable("kernel", "arch", "version", "module", "fixes", "machines", "failed", "suspect", "state")
				for _, lp := range patches {
					t.Row(lp.Kernel.Release, lp.Kernel.Arch, lp.Version.String(), lp.Module.Name, strconv.Itoa(len(lp.Fixes)),
						strconv.Itoa(lp.Machines), strconv.Itoa(lp.Failed), strconv.Itoa(lp.Suspect), patchState(lp))
				}
				return t.Write(p.s)
			})
		},
	}
	c.Flags().StringVar(&kernel, "kernel", "", "only livepatches of this kernel `RELEASE`")
	return c
}

func patchState(lp api.Patch) string {
	if lp.Withdrawn != nil {
		return "withdrawn"
	}
	return "published"
}

// kernelFlags choose a kernel on the command line.
type kernelFlags struct{ arch string }

func (f *kernelFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.arch, "arch", "amd64", "`ARCH`itecture of the kernel")
}

func (f *kernelFlags) parse(c *cobra.Command, args []string) (livepatch.KernelTarget, livepatch.Version, error) {
	k := livepatch.KernelTarget{Release: args[0], Arch: f.arch}
	v, err := livepatch.ParseVersion(args[1])
	if err != nil || v.IsZero() {
		return k, v, cli.Usagef(c, "%q is not a livepatch version such as 3.1", args[1])
	}
	if err := k.Validate(); err != nil {
		return k, v, cli.Usagef(c, "%v", err)
	}
	return k, v, nil
}

func (p *program) patchShow() *cobra.Command {
	var f kernelFlags
	c := &cobra.Command{
		Use:     "show RELEASE VERSION",
		Short:   "Show a published livepatch",
		Example: examples(`livepatch-admin patch show 6.1.0-47-cloud-amd64 3.1`),
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			k, v, err := f.parse(c, args)
			if err != nil {
				return err
			}
			s, err := p.connect()
			if err != nil {
				return cannot("show livepatch", err)
			}
			lp, err := s.api.Patch(c.Context(), k, v)
			if err != nil {
				return cannot("show livepatch", err)
			}
			return p.print(lp, func() error { return p.writePatch(lp) })
		},
	}
	f.add(c)
	return c
}

func (p *program) writePatch(lp api.Patch) error {
	t := details()
	t.Row("livepatch", lp.Version.String())
	t.Row("kernel", lp.Kernel.String())
	for _, id := range lp.BuildIDs {
		t.Row("build id", id)
	}
	t.Row("module", lp.Module.Name)
	t.Row("sha256", lp.Module.SHA256)
	t.Row("replaces", functions(lp.Module))
	t.Row("takes the place of earlier ones", yesNo(lp.Module.Replace))
	t.Row("signed for kernels", yesNo(lp.Module.Signed))
	for _, f := range lp.Fixes {
		t.Row("fixes", strings.TrimSpace(f.CVE+" ("+string(f.Priority)+") "+f.Description))
	}
	if lp.Source.SHA256 != "" {
		t.Row("source", lp.Source.Name+" "+lp.Source.SHA256)
	}
	t.Row("published", cli.Time(lp.Published))
	t.Row("state", patchState(lp))
	if lp.Withdrawn != nil {
		t.Row("withdrawn", cli.Time(lp.Withdrawn.At)+": "+lp.Withdrawn.Reason)
	}
	t.Row("runs on", cli.Count(lp.Machines, "machine"))
	t.Row("failed on", cli.Count(lp.Failed, "machine"))
	t.Row("suspected by", cli.Count(lp.Suspect, "machine"))
	return t.Write(p.s)
}

// withdrawn is the result of patch withdraw.
type withdrawn struct {
	Kernel  livepatch.KernelTarget `json:"kernel"`
	Version livepatch.Version      `json:"version"`
	// Already tells that it had been withdrawn before.
	Already bool `json:"already_withdrawn,omitempty"`
	submission
}

func (p *program) patchWithdraw() *cobra.Command {
	var f kernelFlags
	var reason string
	c := &cobra.Command{
		Use:   "withdraw RELEASE VERSION --reason TEXT",
		Short: "Take a livepatch back: machines unload it and never load it again",
		Long: `Take a livepatch back, for good. Machines that run it go back to the version before it where there is
one, else unload it; it is never loaded again. The vulnerabilities that only it fixes are open again.`,
		Example: examples(`
livepatch-admin patch withdraw 6.1.0-47-cloud-amd64 3.1 --reason "warns in tcp_ack on one NIC"`),
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			k, v, err := f.parse(c, args)
			if err != nil {
				return err
			}
			if reason == "" {
				return cli.Usagef(c, "say why: --reason TEXT; the owners of machines read it")
			}
			return cannot("withdraw livepatch", p.runWithdraw(c, k, v, reason))
		},
	}
	f.add(c)
	c.Flags().StringVar(&reason, "reason", "", "why, in a sentence for the owners of machines")
	return c
}

func (p *program) runWithdraw(c *cobra.Command, k livepatch.KernelTarget, v livepatch.Version, reason string) error {
	s, err := p.connect()
	if err != nil {
		return err
	}
	result := withdrawn{Kernel: k, Version: v}
	result.submission, err = s.submit(c.Context(), p, []livepatch.KernelTarget{k}, func(view *stream.View) (*stream.Pending, error) {
		cat := view.Catalogue(k)
		lp := cat.Find(v)
		if lp == nil {
			return nil, livepatch.Errorf(livepatch.CodeNotFound, "there is no livepatch %s of %s", v, k)
		}
		if lp.Withdrawn != nil {
			result.Already = true
			return nil, errStop
		}
		lp.Withdrawn = &livepatch.Withdrawal{At: p.now().UTC().Truncate(1e9), Reason: reason}
		return view.SetCatalogue(cat, "withdraw "+v.String()+" of "+k.Release+": "+reason, stream.Lifetimes{}, p.now())
	})
	if err != nil && !result.Already {
		return err
	}
	return p.print(result, func() error {
		if result.Already {
			return p.s.Printf("Livepatch %s of %s was withdrawn already; nothing changed.", v, k.Release)
		}
		return p.tell(result.submission, "Withdrew livepatch "+v.String()+" of "+k.Release+". Machines that are connected unload it within seconds, others when they check in next.\nWho could not and needs a reboot: livepatch-admin report patch-health "+k.Release+" "+v.String())
	})
}
