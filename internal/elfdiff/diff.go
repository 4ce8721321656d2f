package elfdiff

import (
	"bytes"
	"slices"
	"strings"
)

// Reason codes of what cannot be livepatched. They are part of the builder's
// report and never change.
const (
	ReasonData      = "changed-data"      // initialised data changed
	ReasonInit      = "init-code"         // code that ran at start changed
	ReasonNoHook    = "no-fentry"         // the function cannot be hooked
	ReasonSection   = "unknown-section"   // a section that is not understood changed
	ReasonLayout    = "struct-layout"     // a structure's layout changed
	ReasonAmbiguous = "ambiguous-symbol"  // which variable is meant is not certain
	ReasonStaticKey = "static-key"        // a module's static key in replaced code
	ReasonNoChange  = "no-change"         // nothing to replace
	ReasonIdentity  = "identity-mismatch" // the rebuilt function is not the shipped one
	ReasonCompile   = "compile-failed"    // the fix does not compile for this kernel
	ReasonHeader    = "header-too-wide"   // too many users of a header to build them all
	ReasonFile      = "unsupported-file"  // assembly, Makefile, Kconfig
	ReasonNotBuilt  = "not-in-kernel"     // the file is not part of this kernel
	ReasonApply     = "does-not-apply"    // the fix does not apply to the sources
	ReasonSymbol    = "unresolved-symbol" // a symbol the fix needs is not in the kernel
)

// Problem is a reason why a fix cannot be livepatched as it is.
type Problem struct {
	Code string
	// Function is the function or variable it is about; may be empty.
	Function string
	Reason   string
	Advice   string
}

// Pair is a function that changed: New replaces Old.
type Pair struct{ Old, New *Item }

// Callback is a function of the fix that the livepatch core calls.
type Callback struct {
	// Kind is pre_patch, post_patch, pre_unpatch or post_unpatch: the members of
	// struct klp_callbacks.
	Kind     string
	Function *Item
}

// Result is what Diff found.
type Result struct {
	// Changed are the replaced functions, in the patched object's order. A
	// function's cold part is not listed; it is part of Include.
	Changed []Pair
	// New are the functions that only the patched object has and that are needed.
	New []*Item
	// Include is everything of the patched object that the livepatch carries:
	// changed and new functions with their cold parts, new data, constants.
	Include []*Item
	// Callbacks are the functions that the fix wants to be called when the livepatch
	// goes on or off.
	Callbacks []Callback
	// Problems, when there are any, forbid the livepatch.
	Problems []Problem

	corr     *correlation
	included map[*Item]bool
	changed  map[*Item]bool
}

// Original is the item of the original object that a patched one corresponds to,
// or nil for a new one.
func (r *Result) Original(it *Item) *Item { return r.corr.toOld[it] }

// Included tells whether the livepatch carries its own copy of the item.
func (r *Result) Included(it *Item) bool { return r.included[it] }

// Diff compares an object with its patched build.
func Diff(old, new *Graph) *Result {
	d := &differ{old: old, new: new, Result: &Result{corr: correlate(old, new), included: map[*Item]bool{}, changed: map[*Item]bool{}}}
	d.findChanged()
	d.promoteConstants()
	d.checkData()
	d.checkSections()
	d.closure()
	d.checkFunctions()
	if len(d.Changed) == 0 && len(d.Problems) == 0 {
		d.problem(ReasonNoChange, "", "the fix changes no code of this object: it only moves or renames what is there", "Nothing needs to be livepatched here.")
	}
	return d.Result
}

type differ struct {
	*Result
	old, new *Graph
	// copied are changed constants of which the livepatch carries the new version.
	copied map[*Item]bool
}

func (d *differ) problem(code, name, reason, advice string) {
	p := Problem{Code: code, Function: name, Reason: reason, Advice: advice}
	if !slices.Contains(d.Problems, p) {
		d.Problems = append(d.Problems, p)
	}
}

// cold tells whether the item is the part of a function that the compiler moved out
// of the way, and of which one.
func cold(it *Item) (parent string, ok bool) {
	return strings.CutSuffix(it.Name, ".cold")
}

// findChanged marks the patched functions that differ from their originals. A
// function and its cold part change together.
func (d *differ) findChanged() {
	byName := map[string]*Item{}
	for _, it := range d.new.Items {
		byName[it.Name] = it
	}
	for _, it := range d.new.Items {
		if it.Kind != Function {
			continue
		}
		if old := d.corr.toOld[it]; old == nil || !d.equal(old, it) {
			d.markChanged(it, byName)
		}
	}
	for _, it := range d.old.Items { // a cold part that is gone is a change of its function
		if parent, ok := cold(it); ok && it.Kind == Function && d.corr.toNew[it] == nil && byName[parent] != nil {
			d.markChanged(byName[parent], byName)
		}
	}
}

func (d *differ) markChanged(it *Item, byName map[string]*Item) {
	d.changed[it] = true
	if parent, ok := cold(it); ok && byName[parent] != nil {
		d.changed[byName[parent]] = true
	} else if c := byName[it.Name+".cold"]; c != nil {
		d.changed[c] = true
	}
}

// equal compares code or data with its original: bytes, references, table rows.
func (d *differ) equal(old, new *Item) bool {
	if old.Size != new.Size || !bytes.Equal(old.Data, new.Data) || !d.equalRefs(old.Refs, new.Refs) {
		return false
	}
	a, b := comparedEntries(old), comparedEntries(new)
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Table != b[i].Table || !bytes.Equal(rowData(a[i]), rowData(b[i])) || !d.equalRefs(rowRefs(a[i]), rowRefs(b[i])) {
			return false
		}
	}
	return true
}

func comparedEntries(it *Item) []Entry {
	var out []Entry
	for _, e := range it.Entries {
		if compared(e.Table) {
			out = append(out, e)
		}
	}
	return out
}

// rowData is the part of a row that matters. In __bug_table (include/asm-generic/bug.h)
// that is the flags, the last two bytes, and not the line before them.
func rowData(e Entry) []byte {
	if e.Table == "__bug_table" && len(e.Data) >= 2 {
		return e.Data[len(e.Data)-2:]
	}
	return e.Data
}

// rowRefs leaves out the file name of a __bug_table row.
func rowRefs(e Entry) []Ref {
	if e.Table == "__bug_table" {
		return e.Refs[:1]
	}
	return e.Refs
}

func (d *differ) equalRefs(a, b []Ref) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Offset != b[i].Offset || a[i].Type != b[i].Type || a[i].Delta != b[i].Delta || a[i].Bias != b[i].Bias ||
			!d.same(a[i].Target, b[i].Target) {
			return false
		}
	}
	return true
}

// same tells whether two references lead to the same thing.
func (d *differ) same(old, new *Item) bool {
	if old.Kind != new.Kind {
		return false
	}
	switch old.Kind {
	case Undefined:
		return old.Name == new.Name
	case String, Constant:
		return bytes.Equal(old.Data, new.Data)
	case Function, Data:
		return d.corr.toOld[new] == old
	}
	if known, ok := d.corr.toOld[new]; ok {
		return known == old
	}
	d.corr.toOld[new] = old // assumed while it is compared: pieces may refer to each other
	if old.Section.Name == new.Section.Name && bytes.Equal(old.Data, new.Data) && d.equalRefs(old.Refs, new.Refs) {
		return true
	}
	delete(d.corr.toOld, new)
	return false
}
