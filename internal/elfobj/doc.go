// Package elfobj reads relocatable ELF objects and kernel modules, and says what
// a livepatch module patches.
//
// Every byte is distrusted: objects come from compilers and packages, but also
// from uploads and from the network. Parse never panics, never allocates more
// than a small multiple of what it was given, and follows no offset that it has
// not checked. It is the only home of debug/elf.
package elfobj
