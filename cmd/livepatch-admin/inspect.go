package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/elfobj"
)

func (p *program) inspect() *cobra.Command {
	return &cobra.Command{
		Use:     "inspect MODULE.ko",
		Short:   "Show what a livepatch module says of itself",
		Long:    "Show what a livepatch module says of itself: the kernel it is for and the functions it replaces. Needs no server.",
		Example: examples(`livepatch-admin inspect lp.ko`),
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := readBounded(args[0], livepatch.MaxModuleSize)
			if err != nil {
				return cannot("inspect "+filepath.Base(args[0]), err)
			}
			patch, err := elfobj.ParsePatch(b)
			if err != nil {
				return cannot("inspect "+filepath.Base(args[0]), err)
			}
			m, err := elfobj.ParseModule(b)
			if err != nil {
				return cannot("inspect "+filepath.Base(args[0]), err)
			}
			return p.print(m, func() error { return p.writeModule(m, patch) })
		},
	}
}

func (p *program) writeModule(m livepatch.Module, patch *elfobj.Patch) error {
	t := details()
	t.Row("module", m.Name)
	t.Row("kernel", m.VerMagic)
	t.Row("srcversion", m.SrcVersion)
	t.Row("takes the place of earlier ones", yesNo(m.Replace))
	t.Row("signed for kernels", yesNo(m.Signed))
	t.Row("size", cli.Bytes(m.Size))
	t.Row("sha256", m.SHA256)
	if err := t.Write(p.s); err != nil {
		return err
	}
	if err := p.s.Printf(""); err != nil {
		return err
	}
	f := cli.NewTable("object", "function", "position", "bytes")
	for _, o := range patch.Objects {
		for _, fn := range o.Functions {
			f.Row(o.Name, fn.Name, positive(fn.Position), positive(fn.Size))
		}
	}
	return f.Write(p.s)
}

// positive writes a number that is unknown when it is 0.
func positive(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}
