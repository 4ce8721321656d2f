package builder

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"livepatch"
	"livepatch/internal/elfobj"
	"livepatch/internal/kimage"
)

// object is a shipped kernel image or module: the bytes that run.
type object struct {
	// name is "vmlinux" or the module's name.
	name    string
	file    *elfobj.File
	symbols []shippedSymbol
	byName  map[string][]int // indexes into symbols, in the order the kernel counts
}

// shippedSymbol is a symbol as kallsyms will show it.
type shippedSymbol struct {
	name string
	// section is nil in vmlinux, where address is absolute; in a module the address
	// is relative to it.
	section *elfobj.Section
	address uint64
	global  bool
}

func (o *object) index() {
	o.byName = map[string][]int{}
	for i, s := range o.symbols {
		o.byName[s.name] = append(o.byName[s.name], i)
	}
}

// position is how the livepatch core is told of the i-th symbol: 0 for a unique
// name, else counted from 1 among equal names (klp_find_object_symbol in
// kernel/livepatch/core.c).
func (o *object) position(i int) uint64 {
	same := o.byName[o.symbols[i].name]
	if len(same) == 1 {
		return 0
	}
	return uint64(slices.Index(same, i)) + 1
}

// global finds a symbol that another file may refer to by name.
func (o *object) global(name string) (int, bool) {
	for _, i := range o.byName[name] {
		if o.symbols[i].global {
			return i, true
		}
	}
	if same := o.byName[name]; len(same) == 1 {
		return same[0], true
	}
	return 0, false
}

// bytes returns size bytes at a place of the object, nil where it has none.
func (o *object) bytes(section *elfobj.Section, address, size uint64) []byte {
	if section == nil {
		for _, s := range o.file.Sections {
			if s.Flags&elfobj.SHF_ALLOC != 0 && s.Addr != 0 && address >= s.Addr && address-s.Addr < uint64(len(s.Data)) {
				section, address = s, address-s.Addr
				break
			}
		}
	}
	if section == nil || address > uint64(len(section.Data)) || size > uint64(len(section.Data))-address {
		return nil
	}
	return section.Data[address : address+size]
}

// kernel is everything known of the shipped kernel.
type kernel struct {
	shipped *Shipped
	buildID string
	vmlinux *object
	modules map[string]*object
	exports map[string]export
}

// export is one line of Module.symvers.
type export struct {
	crc       uint32
	module    string // "vmlinux" or a path without ending
	namespace string
}

func openKernel(s *Shipped) (*kernel, error) {
	f, err := os.Open(s.Vmlinuz())
	if err != nil {
		return nil, fmt.Errorf("open kernel image: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	image, err := kimage.Payload(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("read kernel image: %w", err)
	}
	syms, err := kimage.Kallsyms(image)
	if err != nil {
		return nil, fmt.Errorf("read kernel symbols: %w", err)
	}
	file, err := elfobj.Parse(image)
	if err != nil {
		return nil, fmt.Errorf("read kernel image: %w", err)
	}
	k := &kernel{shipped: s, modules: map[string]*object{}, vmlinux: &object{name: "vmlinux", file: file}}
	for _, sym := range syms {
		k.vmlinux.symbols = append(k.vmlinux.symbols, shippedSymbol{
			name: sym.Name, address: sym.Address, global: sym.Type >= 'A' && sym.Type <= 'Z', // as nm has it
		})
	}
	k.vmlinux.index()
	if k.buildID, err = kimage.BuildID(f, st.Size()); err != nil {
		return nil, fmt.Errorf("read build id: %w", err)
	}
	if k.exports, err = readSymvers(s.Symvers()); err != nil {
		return nil, fmt.Errorf("read exported symbols: %w", err)
	}
	return k, nil
}

func readSymvers(path string) (map[string]export, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := map[string]export{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		col := strings.Split(sc.Text(), "\t")
		if len(col) < 4 {
			continue
		}
		var e export
		if _, err := fmt.Sscanf(col[0], "0x%x", &e.crc); err != nil {
			return nil, fmt.Errorf("checksum of %s: %w", col[1], err)
		}
		e.module = col[2]
		if len(col) > 4 {
			e.namespace = col[4]
		}
		m[col[1]] = e
	}
	return m, sc.Err()
}

// object returns the image or the module of this name.
func (k *kernel) object(ctx context.Context, name string) (*object, error) {
	if name == "vmlinux" {
		return k.vmlinux, nil
	}
	if o := k.modules[name]; o != nil {
		return o, nil
	}
	path, err := k.modulePath(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := readModuleFile(path)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", name, err)
	}
	f, err := elfobj.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", name, err)
	}
	o := &object{name: name, file: f}
	for _, s := range f.Symbols {
		if s.Name == "" || s.Undefined() || s.Type == elfobj.STT_SECTION || s.Type == elfobj.STT_FILE {
			continue
		}
		o.symbols = append(o.symbols, shippedSymbol{
			name: s.Name, section: s.Section, address: s.Value, global: s.Bind != elfobj.STB_LOCAL,
		})
	}
	o.index()
	k.modules[name] = o
	return o, nil
}

// modulePath finds the shipped file of a module.
func (k *kernel) modulePath(ctx context.Context, name string) (path string, err error) {
	for _, lib := range []string{"lib", "usr/lib"} {
		root := filepath.Join(k.shipped.Dir, lib, "modules", k.shipped.Release)
		err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || ctx.Err() != nil {
				return ctx.Err()
			}
			base, _, ok := strings.Cut(d.Name(), ".ko")
			if ok && strings.ReplaceAll(base, "-", "_") == name && d.Type().IsRegular() {
				path = p
				return fs.SkipAll
			}
			return nil
		})
		if path != "" || err != nil {
			return path, err
		}
	}
	return "", livepatch.Errorf(livepatch.CodeNotFound, "module %s is not among the modules of kernel %s", name, k.shipped.Release)
}

// readModuleFile reads a module, which the distribution may have compressed.
func readModuleFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		if r, err = xz.NewReader(f); err != nil {
			return nil, err
		}
	case ".zst":
		d, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r = d
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(r, livepatch.MaxModuleSize+1))
	if err == nil && n > livepatch.MaxModuleSize {
		err = fmt.Errorf("it has more than %d bytes", livepatch.MaxModuleSize)
	}
	return b.Bytes(), err
}
