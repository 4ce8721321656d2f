package builder

import (
	"embed"
	"fmt"
	"os"
)

// headers are what fixes may include beside the kernel's own headers.
//
//go:embed include
var headers embed.FS

// includeDir is where the headers are, in the working folder.
const includeDir = "include"

func writeHeaders(work string) error {
	if err := os.CopyFS(work, headers); err != nil {
		return fmt.Errorf("write headers for fixes: %w", err)
	}
	return nil
}
