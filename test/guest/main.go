// Command guest runs inside virtual machines; see package guest.
package main

import (
	"fmt"
	"os"

	"livepatch/internal/vm/guest"
)

func main() {
	err := guest.Main()
	fmt.Fprintln(os.Stderr, "livepatch guest:", err)
	os.Exit(1)
}
