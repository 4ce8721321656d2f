// Package agent is the loop on the machine: it asks the server what may run,
// verifies it against the signed stream and this kernel, loads it, watches it,
// and reports. It serves package localapi on a unix socket.
//
// State is the kernel's: a reboot removes every livepatch. What the agent keeps
// on disk is small and in one folder, each file replaced atomically: who the
// machine is (identity.json), the signed metadata (stream), the module to load at
// the next boot (module.ko), what was attempted (journal.json), and what was
// learnt and is not reported yet (state.json).
//
// Two rules stand above all others. The journal is on disk before the kernel sees
// a module, so that a machine never crashes twice on the same one. And what the
// server says only chooses among what the operator's offline keys signed for this
// very kernel.
package agent
