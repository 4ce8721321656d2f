package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/elfobj"
)

func (p *program) signModule() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "sign-module MODULE.ko --out FILE",
		Short: "Append a signature that kernels check",
		Long: `Append a PKCS #7 signature in the kernel's format to a livepatch module, with the key that
'keys module-cert' made. 'publish --sign-module' does the same on the way. Needs no server.`,
		Example: examples(`livepatch-admin sign-module lp.ko --out lp-signed.ko`),
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			what := "sign " + filepath.Base(args[0])
			conf, err := p.config()
			if err != nil {
				return cannot(what, err)
			}
			module, err := readBounded(args[0], livepatch.MaxModuleSize)
			if err != nil {
				return cannot(what, err)
			}
			if _, err := elfobj.ParseModule(module); err != nil {
				return cannot(what, err)
			}
			if module, err = signWithKey(module, conf.Keys); err != nil {
				return cannot(what, err)
			}
			if out == "" {
				out = args[0]
			}
			if err := writeWhole(out, module); err != nil {
				return cannot(what, err)
			}
			return p.print(map[string]string{"module": out, "sha256": digest(module)}, func() error {
				return p.s.Printf("Signed %s.", out)
			})
		},
	}
	c.Flags().StringVarP(&out, "out", "o", "", "`FILE` to write (default the module itself)")
	return c
}

// writeWhole replaces a file whole or not at all.
func writeWhole(path string, b []byte) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
