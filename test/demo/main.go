// Command demo shows the main job from start to end on a real kernel: it builds a
// livepatch, publishes it on a server, boots a Debian in a virtual machine, installs
// and enables the client there, and watches the kernel being patched, patched again
// after a reboot before the network is up, and unpatched when the livepatch is
// withdrawn. It exits with 0 only if it saw every step happen.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Stdout))
}
