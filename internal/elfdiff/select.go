package elfdiff

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"livepatch/internal/elfobj"
)

// maxConstant bounds constants that are copied rather than referred to, in bytes.
const maxConstant = 64 << 10

// copyable tells whether the livepatch may carry its own copy of a constant: it is
// read-only, private to the object and holds no address, so nothing can tell the
// copies apart.
func copyable(it *Item) bool {
	return it.Kind == Data && !it.Writable() && it.Symbol.Bind == 0 && len(it.Refs) == 0 && it.Size <= maxConstant &&
		strings.HasPrefix(it.Section.Name, ".rodata")
}

// promoteConstants finds changed constants that only code uses. Their users change
// with them: each gets the new version along with the livepatch.
func (d *differ) promoteConstants() {
	d.copied = map[*Item]bool{}
	users := map[*Item][]*Item{}
	for _, it := range d.new.Items {
		for t := range refsOf(it) {
			users[t] = append(users[t], it)
		}
	}
	byName := map[string]*Item{}
	for _, it := range d.new.Items {
		byName[it.Name] = it
	}
	for _, it := range d.new.Items {
		old := d.corr.toOld[it]
		if old == nil || it.Kind != Data || !copyable(it) || !copyable(old) || d.equal(old, it) {
			continue
		}
		if slices.ContainsFunc(users[it], func(u *Item) bool { return u.Kind != Function || u.Init() }) {
			continue
		}
		d.copied[it] = true
		for _, u := range users[it] {
			d.markChanged(u, byName)
		}
	}
}

// checkData refuses changes of data that lives on in the running kernel.
func (d *differ) checkData() {
	for _, it := range d.new.Items {
		old := d.corr.toOld[it]
		if it.Kind != Data || old == nil || d.copied[it] || ignoredData(it) || d.equal(old, it) {
			continue
		}
		d.problem(ReasonData, it.Name, "the fix changes the initial value of "+it.Name+", which the running kernel initialised long ago",
			"Set the value in a pre-patch callback, or reboot into the fixed kernel.")
	}
}

// ignoredData are records that describe the source rather than hold state.
func ignoredData(it *Item) bool {
	base, _, _ := baseName(it.Name)
	return strings.HasPrefix(it.Name, "__UNIQUE_ID_") || it.Section.Name == "__dyndbg" || base == "__func__" || base == "__PRETTY_FUNCTION__"
}

// checkSections refuses changes in allocated sections that hold neither code nor
// variables, such as lists that are read at start: in their size, and in their bytes
// where no symbol names a part of them.
func (d *differ) checkSections() {
	describe := func(g *Graph) map[string]string {
		m := map[string]string{}
		for _, s := range g.file.Sections {
			if s.Flags&elfobj.SHF_ALLOC == 0 || special(s.Name) || mergeable(s) || s.Size == 0 || ordinary(s) {
				continue
			}
			m[s.Name] += strconv.FormatUint(s.Size, 10)
			if len(g.bySection[s]) == 0 && len(g.anonymous[s]) == 0 {
				m[s.Name] += string(s.Data)
			}
		}
		return m
	}
	old, new := describe(d.old), describe(d.new)
	for _, name := range slices.Sorted(maps.Keys(new)) {
		if old[name] != new[name] {
			d.problem(ReasonSection, name, "the fix changes section "+name+", which is read when the kernel or module starts",
				"Reboot into the fixed kernel.")
		}
		delete(old, name)
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		d.problem(ReasonSection, name, "the fix removes section "+name+", which is read when the kernel or module starts",
			"Reboot into the fixed kernel.")
	}
}

// ordinary tells whether a section holds functions or variables, which are compared
// one by one.
func ordinary(s *elfobj.Section) bool {
	switch base := SectionBase(s); base {
	case ".rodata", ".data", ".bss", ".data.rel.ro", ".data..read_mostly", ".data..ro_after_init", ".data..percpu", ".data.once", ".data..once",
		".ref.data", ".init.data", ".init.rodata", ".exit.data", ".altinstr_replacement", ".altinstr_aux", "__dyndbg", ".fixup":
		return true
	default:
		return s.Exec() || strings.HasPrefix(s.Name, callbackPrefix) || strings.HasPrefix(base, ".data..percpu") || strings.HasPrefix(base, ".bss..")
	}
}

// closure collects what the changed functions need: new functions and data, and
// copies of constants. Everything else is referred to where it is.
func (d *differ) closure() {
	needed := d.roots()
	for len(needed) > 0 {
		it := needed[0]
		needed = needed[1:]
		if d.included[it] {
			continue
		}
		d.included[it] = true
		for _, r := range it.Refs {
			if d.carries(r.Target) {
				needed = append(needed, r.Target)
			}
		}
		for _, e := range it.Entries {
			for _, r := range e.Refs[1:] {
				if d.carries(r.Target) && e.Table != "__jump_table" {
					needed = append(needed, r.Target)
				}
			}
		}
	}
	for _, it := range d.new.Items {
		if d.included[it] {
			d.Include = append(d.Include, it)
		}
	}
	for _, s := range d.new.file.Sections { // anonymous pieces in the file's order
		for _, it := range d.new.anonymous[s] {
			if d.included[it] {
				d.Include = append(d.Include, it)
			}
		}
	}
	d.list()
}

// callbackPrefix begins the sections in which a fix names its callbacks: see the
// builder's livepatch/callbacks.h.
const callbackPrefix = ".livepatch."

// roots are the changed functions that exist in the running kernel, and the fix's
// callbacks.
func (d *differ) roots() []*Item {
	var roots []*Item
	for _, it := range d.new.Items {
		if kind, ok := strings.CutPrefix(it.Section.Name, callbackPrefix); ok && len(it.Refs) == 1 && it.Refs[0].Target.Kind == Function {
			roots = append(roots, it.Refs[0].Target)
			d.Callbacks = append(d.Callbacks, Callback{Kind: kind, Function: it.Refs[0].Target})
		}
	}
	for _, it := range d.new.Items {
		if d.changed[it] && d.corr.toOld[it] != nil && !it.Init() {
			roots = append(roots, it)
		}
	}
	return roots
}

// list fills Changed and New from what is included.
func (d *differ) list() {
	for _, it := range d.Include {
		if it.Kind != Function {
			continue
		}
		if _, ok := cold(it); ok {
			continue
		}
		if old := d.corr.toOld[it]; old != nil {
			d.Changed = append(d.Changed, Pair{old, it})
		} else {
			d.New = append(d.New, it)
		}
	}
}

// carries tells whether the livepatch needs its own copy of what is referred to.
func (d *differ) carries(it *Item) bool {
	switch it.Kind {
	case String, Constant, Undefined:
		return false // the writer makes them as it meets them
	case Anonymous:
		return !special(it.Section.Name)
	case Function:
		return d.changed[it]
	}
	old := d.corr.toOld[it]
	_, _, numbered := baseName(it.Name)
	return old == nil || d.copied[it] || numbered && copyable(it) && d.equal(old, it) || ignoredData(it) && copyable(it)
}

// checkFunctions refuses what cannot be replaced although it changed.
func (d *differ) checkFunctions() {
	for _, it := range d.new.Items {
		old := d.corr.toOld[it]
		if it.Kind != Function || !d.changed[it] || old == nil {
			if d.included[it] && it.Init() {
				d.problem(ReasonInit, it.Name, "the fix needs "+it.Name+", which is in memory only while the kernel or module starts",
					"Reboot into the fixed kernel.")
			}
			continue
		}
		_, isCold := cold(it)
		switch {
		case it.Init():
			d.problem(ReasonInit, it.Name, it.Name+" changed, which ran when the kernel or module started and will not run again",
				"Redo its effect in a pre-patch callback, or reboot into the fixed kernel.")
		case !isCold && !old.Traceable:
			d.problem(ReasonNoHook, it.Name, it.Name+" changed, which has no call to __fentry__ and so cannot be redirected",
				"Reboot into the fixed kernel, or fix its callers instead.")
		}
	}
	for _, it := range d.Include {
		if it.Kind == Data && it.Section.Name == "__tracepoints" {
			d.problem(ReasonSection, it.Name, "the fix adds the tracepoint "+it.Name, "Leave the tracepoint out of the livepatch.")
		}
	}
}

// AddressTaken lists the new functions whose address the livepatch's code or data
// takes other than to call them. Whoever keeps such an address must not use it after
// the livepatch is unloaded.
func (r *Result) AddressTaken() []*Item {
	var taken []*Item
	for _, it := range r.Include {
		for _, ref := range it.Refs {
			t := ref.Target
			if t.Kind == Function && t != it && ref.Delta == 0 && !it.Calls(ref) && slices.Contains(r.New, t) && !slices.Contains(taken, t) {
				taken = append(taken, t)
			}
		}
	}
	return taken
}
