package main

import (
	"fmt"
	"slices"
	"strings"

	"livepatch/test/lab"
)

// table is the page that says which fixes are livepatchable, and why not.
func table(fixes []*fix) string {
	var b strings.Builder
	built, loaded, refused, failed := 0, 0, 0, 0
	for _, f := range fixes {
		switch {
		case f.failed != nil:
			failed++
		case f.module == "":
			refused++
		default:
			built++
			if f.loaded == "yes" {
				loaded++
			}
		}
	}
	shown := 0
	for _, f := range fixes {
		if f.shown != "" && f.verdict != "" {
			shown++
		}
	}
	fmt.Fprintf(&b, `# Real fixes, built and loaded

Made by `+"`make fixes`"+`: every fix of the collection is given to `+"`livepatch-admin build`"+` for the kernel %s.
What is built is loaded in a virtual machine with that kernel, once before and once after the
module that it patches, must finish its transition, and is disabled and removed again.

%d fixes: %d built, of which %d loaded and were removed without a complaint of the kernel; %d refused; %d failed.
For %d of them a program provokes the bug, and the kernel answers otherwise while the livepatch is on.

"Reference" is what another object differ said, which is one tool's word. Where the functions differ from its
list, both are shown. Where fewer functions are replaced than it lists, the others only moved: line numbers in
their assertions stay what they were. Where it refused and a module is built, a static function became global, or a
constant changed that only code uses. A fix that only makes a function global or removes one changes nothing that
runs.

| File | Result | Loaded | Reference |
|---|---|---|---|
`, lab.Release, len(fixes), built, loaded, refused, failed, shown)
	for _, f := range fixes {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", f.file, cell(f.result()+f.functionsCell()), cell(f.loadedCell()), cell(f.referenceCell()))
	}
	return b.String()
}

// cell keeps text inside one cell of the table.
func cell(s string) string {
	return strings.NewReplacer("\n", " ", "|", "\\|", "/root/", "~/").Replace(s)
}

// functionsCell lists the functions where they are not those of the reference.
func (f *fix) functionsCell() string {
	if f.module == "" {
		return ""
	}
	if f.sameFunctions() {
		return fmt.Sprintf(", %d functions", len(f.report.Functions))
	}
	return ": " + f.functionNames()
}

func (f *fix) sameFunctions() bool {
	a, b := strings.Fields(f.functionNames()), strings.Fields(f.functions)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func (f *fix) loadedCell() string {
	line, _, _ := strings.Cut(f.loaded, "\n")
	if f.shown != "" {
		line += "; shown: " + f.shown
	}
	return line
}

func (f *fix) referenceCell() string {
	switch {
	case f.module != "" && f.sameFunctions():
		return "the same functions"
	case f.functions != "" && f.module != "":
		return f.verdict + ": " + f.functions
	case f.reason != "":
		return f.verdict + ": " + strings.TrimSuffix(f.reason, ";")
	}
	return f.verdict
}
