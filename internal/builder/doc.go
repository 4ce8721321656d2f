// Package builder makes a livepatch module from a fix in source form: it fetches
// and prepares the exact sources of a distribution's kernel, compiles what the fix
// touches before and after, proves that the result is the shipped kernel's code, and
// writes the module. It never builds a kernel. It is the only home of running
// compilers.
package builder
