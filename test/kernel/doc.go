// Package kernel tests what this project does with kernels on a real one in QEMU:
// `go test -tags vm ./test/kernel`.
package kernel
