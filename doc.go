// Package livepatch holds the nouns of the livepatch service: kernels,
// livepatches, machines, grants, reports, and the errors that people read.
//
// It does no I/O and reads no clock: everything here is a value, its validation
// and its text form. Every other package may import it; it imports none of them.
package livepatch
