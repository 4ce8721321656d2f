//go:build docs

package cli

import (
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// addManual adds the hidden command "write-manual DIR", with which packaging makes
// the manual pages of section 1. Their date is SOURCE_DATE_EPOCH, so that the same
// sources give the same pages.
func addManual(root *cobra.Command) {
	root.DisableAutoGenTag = true
	root.AddCommand(&cobra.Command{
		Use: "write-manual DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			sec, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
			if err != nil {
				return Usagef(c, "SOURCE_DATE_EPOCH must be seconds since 1970: %v", err)
			}
			date := time.Unix(sec, 0).UTC()
			head := &doc.GenManHeader{Section: "1", Source: "Livepatch", Manual: "Livepatch manual", Date: &date}
			return doc.GenManTree(c.Root(), head, args[0])
		},
	})
}
