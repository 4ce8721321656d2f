// Package packaging holds what the Debian packages are made of, and the tests that
// hold the packages to it. build.sh makes them.
package packaging
