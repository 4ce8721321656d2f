// Package kernel is this machine's kernel: who it is, whether it can be
// livepatched, what /sys/kernel/livepatch shows, loading and unloading,
// transitions, and what the kernel says after a crash.
//
// A [System] sees the kernel through a folder (the root of a file system) and a
// [Loader] (the calls that change it), so a fake kernel is a folder and a small
// type; package kerneltest has one. Facts come from Linux's
// Documentation/livepatch/livepatch.rst, kernel/livepatch and kernel/module; the
// comments name the function that is meant, since lines move.
package kernel
