//go:build !docs

package cli

import "github.com/spf13/cobra"

// addManual adds nothing: writing manual pages is for builds with the tag docs.
func addManual(*cobra.Command) {}
