// Package rollout tests rollouts where they matter: a real server, and a small fleet
// of real kernels in QEMU that it patches, halts and takes back from:
// `go test -tags vm ./test/rollout`.
package rollout
