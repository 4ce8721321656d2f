package elfdiff

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"livepatch/internal/elfobj"
)

// correlation says which item of the original object a patched one is.
type correlation struct {
	toOld map[*Item]*Item // patched to original
	toNew map[*Item]*Item
}

func (c *correlation) pair(old, new *Item) { c.toOld[new], c.toNew[old] = old, new }

// numberedRE matches the private names of static locals and the like, which the
// compiler numbers as it goes: the same variable may have another number in the
// patched object. __UNIQUE_ID_ names end in a bare counter.
var numberedRE = regexp.MustCompile(`^(.*?)((?:\.[0-9]+)+)$`)
var uniqueRE = regexp.MustCompile(`^(__UNIQUE_ID_.*?)([0-9]+)((?:\.[0-9]+)*)$`)

// cloneRE matches the copies that GCC's optimisers make of functions.
var cloneRE = regexp.MustCompile(`\.(constprop|isra|part)\.[0-9]+`)

// baseName strips the numbers from a private name; numbered tells whether there
// were any.
func baseName(name string) (base string, number int, numbered bool) {
	if m := uniqueRE.FindStringSubmatch(name); m != nil {
		n, _ := strconv.Atoi(m[2])
		return m[1], n, true
	}
	if cloneRE.MatchString(name) {
		return name, 0, false
	}
	m := numberedRE.FindStringSubmatch(name)
	if m == nil {
		return name, 0, false
	}
	n, _ := strconv.Atoi(m[2][strings.LastIndexByte(m[2], '.')+1:])
	return m[1], n, true
}

// cloneBase is the name with the numbers of clones taken out, so that foo.part.0
// and foo.part.1 have the same.
func cloneBase(name string) string { return cloneRE.ReplaceAllString(name, ".$1") }

// SectionBase is the kind of section a compiler made the per-symbol section from:
// ".data" for ".data.foo.1", ".text.unlikely" for ".text.unlikely.foo".
func SectionBase(s *elfobj.Section) string {
	for _, p := range []string{
		".text.unlikely", ".text.hot", ".text.startup", ".text", ".rodata", ".data.rel.ro", ".data..read_mostly", ".data..ro_after_init",
		".data..percpu", ".data.once", ".data..once", ".data", ".bss",
	} {
		if s.Name == p || strings.HasPrefix(s.Name, p+".") {
			return p
		}
	}
	return s.Name
}

func correlate(old, new *Graph) *correlation {
	c := &correlation{toOld: map[*Item]*Item{}, toNew: map[*Item]*Item{}}
	c.byName(old, new)
	c.clones(old, new)
	c.numbered(old, new)
	return c
}

// identity is what two items with a stable name must have in common.
func identity(it *Item) string { return strconv.Itoa(int(it.Kind)) + " " + it.Name }

func (c *correlation) byName(old, new *Graph) {
	index := map[string][]*Item{}
	for _, it := range old.Items {
		if _, _, n := baseName(it.Name); !n {
			index[identity(it)] = append(index[identity(it)], it)
		}
	}
	for _, it := range new.Items {
		if same := index[identity(it)]; len(same) > 0 {
			c.pair(same[0], it)
			index[identity(it)] = same[1:]
		}
	}
}

// clones pairs what is left of the optimisers' copies when only their number
// differs and there is no choice.
func (c *correlation) clones(old, new *Graph) {
	left := func(g *Graph, paired map[*Item]*Item) map[string][]*Item {
		m := map[string][]*Item{}
		for _, it := range g.Items {
			if it.Kind == Function && paired[it] == nil && cloneRE.MatchString(it.Name) {
				m[cloneBase(it.Name)] = append(m[cloneBase(it.Name)], it)
			}
		}
		return m
	}
	olds := left(old, c.toNew)
	for base, items := range left(new, c.toOld) {
		if len(items) == 1 && len(olds[base]) == 1 {
			c.pair(olds[base][0], items[0])
		}
	}
}

// variable is a numbered item with what tells it from others of its base name.
type variable struct {
	item   *Item
	number int
	users  string
}

// numbered pairs static locals: same base name, same kind of section, and the same
// functions using them, in the compiler's order.
func (c *correlation) numbered(old, new *Graph) {
	olds, news := variables(old), variables(new)
	bases := make([]string, 0, len(news))
	for b := range news {
		bases = append(bases, b)
	}
	slices.Sort(bases)
	for _, b := range bases {
		c.align(olds[b], news[b])
	}
}

func variables(g *Graph) map[string][]variable {
	users := map[*Item][]string{}
	for _, it := range g.Items {
		name := it.Name
		if it.Kind == Function {
			name = strings.TrimSuffix(cloneRE.ReplaceAllString(name, ""), ".cold")
		} else {
			name, _, _ = baseName(name)
		}
		for t := range refsOf(it) {
			if l := users[t]; !slices.Contains(l, name) {
				users[t] = append(l, name)
			}
		}
	}
	m := map[string][]variable{}
	for _, it := range g.Items {
		if base, number, ok := baseName(it.Name); ok {
			slices.Sort(users[it])
			key := base + " " + SectionBase(it.Section)
			m[key] = append(m[key], variable{it, number, strings.Join(users[it], " ")})
		}
	}
	for _, l := range m {
		slices.SortStableFunc(l, func(a, b variable) int { return cmp.Compare(a.number, b.number) })
	}
	return m
}

// refsOf yields everything that an item and its table rows refer to.
func refsOf(it *Item) func(func(*Item) bool) {
	return func(yield func(*Item) bool) {
		for _, r := range it.Refs {
			if !yield(r.Target) {
				return
			}
		}
		for _, e := range it.Entries {
			if !compared(e.Table) && e.Table != ".static_call_sites" {
				continue
			}
			for _, r := range e.Refs {
				if !yield(r.Target) {
					return
				}
			}
		}
	}
}

// align pairs two lists of variables of one base name. First those with the same
// users, size and content, in order; then with the same users and size; then, when
// as many are left on both sides, those in order that share a user: inlining may have
// moved it. A variable of another function is another variable.
func (c *correlation) align(olds, news []variable) {
	keys := []func(variable) string{
		func(v variable) string {
			return v.users + "\x00" + strconv.FormatUint(v.item.Size, 10) + "\x00" + content(v.item)
		},
		func(v variable) string { return v.users + "\x00" + strconv.FormatUint(v.item.Size, 10) },
	}
	for _, key := range keys {
		for i, j := range common(c.unpaired(olds, c.toNew), c.unpaired(news, c.toOld), key) {
			c.pair(i, j)
		}
	}
	o, n := c.unpaired(olds, c.toNew), c.unpaired(news, c.toOld)
	if len(o) != len(n) {
		return
	}
	for i := range o {
		if o[i].item.Size == n[i].item.Size && shareUser(o[i], n[i]) {
			c.pair(o[i].item, n[i].item)
		}
	}
}

func shareUser(a, b variable) bool {
	users := strings.Fields(b.users)
	return a.users == b.users || slices.ContainsFunc(strings.Fields(a.users), func(u string) bool { return slices.Contains(users, u) })
}

func (c *correlation) unpaired(l []variable, paired map[*Item]*Item) []variable {
	var out []variable
	for _, v := range l {
		if paired[v.item] == nil {
			out = append(out, v)
		}
	}
	return out
}

// content is what an initialised variable holds: its bytes and the strings and
// names it refers to.
func content(it *Item) string {
	var b strings.Builder
	b.Write(it.Data)
	for _, r := range it.Refs {
		name, _, _ := baseName(r.Target.Name)
		b.WriteString("\x00" + name)
		if r.Target.Kind == String {
			b.Write(r.Target.Data)
		}
	}
	return b.String()
}

// common pairs equal keys along a longest common subsequence, so that variables
// that were added or removed do not shift the others. Where the counts of a key
// differ, which of them pairs is decided by order alone; what is left over is new.
func common(a, b []variable, key func(variable) string) map[*Item]*Item {
	const bound = 2000 // quadratic: beyond this, leave them unpaired
	if len(a) > bound || len(b) > bound {
		return nil
	}
	ka, kb := make([]string, len(a)), make([]string, len(b))
	for i, v := range a {
		ka[i] = key(v)
	}
	for i, v := range b {
		kb[i] = key(v)
	}
	n := make([][]int, len(a)+1)
	for i := range n {
		n[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			n[i][j] = max(n[i+1][j], n[i][j+1])
			if ka[i] == kb[j] {
				n[i][j] = max(n[i][j], n[i+1][j+1]+1)
			}
		}
	}
	pairs := map[*Item]*Item{}
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case ka[i] == kb[j] && n[i][j] == n[i+1][j+1]+1:
			pairs[a[i].item] = b[j].item
			i, j = i+1, j+1
		case n[i+1][j] >= n[i][j+1]:
			i++
		default:
			j++
		}
	}
	return pairs
}
