package elfdiff

import (
	"fmt"
	"maps"
	"slices"

	"livepatch/internal/elfobj"
)

// CheckLayouts refuses structures that the fix lays out anew: objects of the old
// layout exist in the running kernel, and code that is not replaced goes on making
// and reading them. New structures are fine.
func CheckLayouts(old, new map[string]elfobj.Layout) []Problem {
	var problems []Problem
	for _, name := range slices.Sorted(maps.Keys(new)) {
		was, ok := old[name]
		if !ok || was.String() == new[name].String() {
			continue
		}
		problems = append(problems, Problem{
			Code: ReasonLayout, Function: name, Reason: fmt.Sprintf("the fix changes the layout of struct %s, %s", name, layoutChange(was, new[name])),
			Advice: "Keep the new member in a shadow variable (klp_shadow_alloc), or reboot into the fixed kernel.",
		})
	}
	return problems
}

func layoutChange(old, new elfobj.Layout) string {
	if old.Size != new.Size {
		return fmt.Sprintf("from %d to %d bytes", old.Size, new.Size)
	}
	for _, m := range new.Members {
		if !slices.Contains(old.Members, m) {
			return fmt.Sprintf("in its member %q", m.Name)
		}
	}
	return "in its members"
}
