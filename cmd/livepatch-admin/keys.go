package main

import (
	"github.com/spf13/cobra"
)

func (p *program) keys() *cobra.Command {
	c := group("keys", "Make, push, rotate and renew the keys that sign the stream",
		p.keysCreate(), p.keysPush(), p.keysShow(), p.keysRenew(), p.keysRotate(), p.keysModuleCert())
	c.Long = `Make, push, rotate and renew the keys that sign the stream.

Root keys say which keys are trusted; signing keys sign what is published. Both stay with people: a
threshold above 1 makes it take several of them. The server has two keys of its own, for snapshot and
timestamp, with which it can only say that the stream is fresh.`
	return c
}
