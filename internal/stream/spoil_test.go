package stream_test

import (
	"encoding/json"
	"os"
	"testing"
)

// spoil changes one byte in one part of a kept state.
func spoil(t *testing.T, file, part string) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	var s map[string]any
	must(t, json.Unmarshal(b, &s))
	in := s
	if part == "bin" || part == "catalogue" {
		for _, kernel := range s["kernels"].(map[string]any) {
			in = kernel.(map[string]any)
		}
	}
	b, err = json.Marshal(in[part])
	must(t, err)
	var content []byte
	must(t, json.Unmarshal(b, &content))
	content[len(content)/2] ^= 1
	in[part] = content
	b, err = json.Marshal(s)
	must(t, err)
	must(t, os.WriteFile(file, b, 0o600))
}
