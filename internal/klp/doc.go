// Package klp writes livepatch modules: it places the pieces that elfdiff selected
// beside compiled tables, and leaves to the kernel's livepatch core what only it can
// resolve, in the form of Documentation/livepatch/module-elf-format.rst.
package klp
