package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/klp"
)

// The files of the key that signs modules for kernels, in the folder of keys.
const (
	moduleKey  = "module.key"
	moduleCert = "module.der"
)

// moduleCertResult is the result of keys module-cert.
type moduleCertResult struct {
	Certificate string `json:"certificate"`
	Created     bool   `json:"created"`
}

func (p *program) keysModuleCert() *cobra.Command {
	var name, out string
	c := &cobra.Command{
		Use:   "module-cert",
		Short: "Make and export the certificate with which kernels check modules",
		Long: `Make the key that signs modules for kernels that check them (module.sig_enforce, lockdown, secure boot),
once, and export its certificate in the form that mokutil takes. It is another key than those of the stream.
Enrol the certificate on each machine that enforces signatures, then publish with --sign-module.`,
		Example: examples(`
livepatch-admin keys module-cert --out livepatch.der

# On the machine, as root; asks for a password, which the next boot asks for again
mokutil --import livepatch.der`),
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, err := p.config()
			if err != nil {
				return cannot("make module certificate", err)
			}
			got, err := p.exportModuleCert(conf.Keys, name, out)
			if err != nil {
				return cannot("make module certificate", err)
			}
			return p.print(got, func() error {
				return p.s.Printf("The certificate is in %s. On each machine that enforces module signatures, as root:\n\n  mokutil --import %s", got.Certificate, filepath.Base(got.Certificate))
			})
		},
	}
	c.Flags().StringVar(&name, "name", "Livepatch module signing", "`NAME` in the certificate, of at most 64 characters")
	c.Flags().StringVar(&out, "out", "", "`FILE` to write a copy of the certificate to")
	return c
}

func (p *program) exportModuleCert(dir, name, out string) (moduleCertResult, error) {
	result := moduleCertResult{Certificate: filepath.Join(dir, moduleCert)}
	der, err := os.ReadFile(result.Certificate)
	if errors.Is(err, fs.ErrNotExist) {
		result.Created = true
		der, err = p.createModuleCert(dir, name)
	}
	if err != nil || out == "" {
		return result, err
	}
	result.Certificate = out
	return result, os.WriteFile(out, der, 0o644)
}

func (p *program) createModuleCert(dir, name string) ([]byte, error) {
	signer, err := klp.NewSigner(p.random, name, p.now())
	if err != nil {
		return nil, err
	}
	key, err := signer.MarshalKey()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, moduleKey)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, livepatch.Errorf(livepatch.CodeConflict, "%s is there without its certificate %s; put that back, or move the key away to make a new one", path, moduleCert)
	}
	if err != nil {
		return nil, err
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	return signer.Certificate(), os.WriteFile(filepath.Join(dir, moduleCert), signer.Certificate(), 0o644)
}

// signWithKey appends a signature to a module with the key in dir. A module that
// carries one already is refused: the kernel checks the last one only.
func signWithKey(module []byte, dir string) ([]byte, error) {
	key, err := os.ReadFile(filepath.Join(dir, moduleKey))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, livepatch.Errorf(livepatch.CodeNotFound, "there is no key for modules in %s; make one with 'livepatch-admin keys module-cert'", dir)
	}
	if err != nil {
		return nil, err
	}
	cert, err := os.ReadFile(filepath.Join(dir, moduleCert))
	if err != nil {
		return nil, err
	}
	signer, err := klp.ParseSigner(key, cert)
	if err != nil {
		return nil, err
	}
	return signer.Sign(module)
}
