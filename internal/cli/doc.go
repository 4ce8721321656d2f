// Package cli is how our commands speak to people and programs: streams that
// know whether somebody watches, tables, JSON, progress, errors and exit codes.
package cli
