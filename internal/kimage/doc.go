// Package kimage reads a shipped kernel image without running it: what is in
// /boot/vmlinuz-RELEASE, which kernel it says it is, and its build id.
//
// Images come from distributions' packages, but they are read like anything else
// that comes from outside: every size is bounded before it is believed.
package kimage
