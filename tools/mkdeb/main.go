// Command mkdeb makes one Debian package of an nfpm configuration. It is nfpm's
// own "nfpm package -p deb" without the formats that we do not make, which need
// ten times the modules.
//
//	mkdeb CONFIG.yaml DIR
//
// The environment fills in ${NAME} in the configuration; SOURCE_DATE_EPOCH is the
// time of every file. It prints the path of the package.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mkdeb: cannot make package:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: mkdeb CONFIG.yaml DIR")
	}
	config, err := nfpm.ParseFileWithEnvMapping(args[0], os.Getenv)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	info, err := config.Get("deb")
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	info = nfpm.WithDefaults(info)
	out := filepath.Join(args[1], deb.Default.ConventionalFileName(info))
	info.Target = out
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := errors.Join(deb.Default.Package(info, f), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", out, err), os.Remove(out))
	}
	_, err = fmt.Fprintln(stdout, out)
	return err
}
