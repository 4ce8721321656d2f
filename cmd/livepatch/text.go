package main

import "strings"

// indent trims text and puts two blanks before each line that is not empty.
func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		if line != "\n" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
