// Package elfdiff compares an object file with the same object built from fixed
// sources, and says which functions changed, what they need and what cannot be
// livepatched.
//
// Both objects are compiled with -ffunction-sections -fdata-sections. Each is read
// into a graph of items (functions, variables, strings) that refer to each other,
// so that nothing depends on how sections are laid out or how the compiler numbered
// its private names. Pure: objects in, answer out.
package elfdiff
