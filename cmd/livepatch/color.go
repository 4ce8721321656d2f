package main

import "strings"

// colored paints the marks of a humane status where colour is allowed: what is
// good green, what waits yellow, what is wrong red.
func (p *program) colored(text string) string {
	if !p.s.Color {
		return text
	}
	return strings.NewReplacer(
		"✓", "\x1b[32m✓\x1b[0m",
		"⧗", "\x1b[33m⧗\x1b[0m",
		"✗", "\x1b[31m✗\x1b[0m",
	).Replace(text)
}
