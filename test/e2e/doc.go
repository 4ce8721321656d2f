// Package e2e tests the real packages in a real Debian against a real server:
// `go test -tags vm ./test/e2e`.
package e2e
