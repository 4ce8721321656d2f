package builder

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"livepatch"
)

// Tree is a prepared kernel source tree: configured as the shipped kernel is, with
// generated headers, and with the commands that kbuild would run.
type Tree struct {
	// Dir is the tree's root, absolute.
	Dir string
	// CC is the compiler that built the shipped kernel, for example gcc-12.
	CC string
	// Release is what the tree calls itself.
	Release string
	Run     Runner
	// Jobs is how many compilers run at a time; at least 1.
	Jobs int
	// objects are the objects that each folder's Makefile names, as far as asked.
	objects map[string]map[string]bool
}

// compiler finds the program that CONFIG_CC_VERSION_TEXT names, and checks that it
// is that very version: another compiler makes other code.
func compiler(ctx context.Context, run Runner, config string) (string, error) {
	text, err := configValue(config, "CONFIG_CC_VERSION_TEXT")
	if err != nil {
		return "", err
	}
	name, want, _ := strings.Cut(text, " ")
	for _, cc := range []string{name, "gcc"} {
		out, err := run(ctx, "", cc, "--version")
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(string(out), "\n")
		if _, got, _ := strings.Cut(line, " "); got == want {
			return cc, nil
		}
	}
	return "", livepatch.Errorf(livepatch.CodeUnsupported, "the kernel was built with %q, which is not installed here: install exactly that compiler", text)
}

// checkSupported refuses configurations in which an object is not finished when it is
// compiled: objtool then runs over whole modules, and what it makes would be missing.
func checkSupported(config string) error {
	for _, key := range []string{"CONFIG_X86_KERNEL_IBT", "CONFIG_LTO_CLANG", "CONFIG_CFI_CLANG"} {
		if v, err := configValue(config, key); err == nil && v == "y" {
			return livepatch.Errorf(livepatch.CodeUnsupported, "the kernel is built with %s, which this builder does not handle yet: build its livepatch with klp-build or kpatch-build", key)
		}
	}
	if v, err := configValue(config, "CONFIG_LIVEPATCH"); err != nil || v != "y" {
		return livepatch.Errorf(livepatch.CodeUnsupported, "the kernel is built without CONFIG_LIVEPATCH: no livepatch can be loaded into it")
	}
	return nil
}

func configValue(path, key string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read kernel configuration: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), key+"="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", fmt.Errorf("the kernel configuration does not set %s", key)
}

// treeName is the cache's name of a tree: source version, configuration, compiler.
func treeName(version, release, cc string, config []byte) string {
	sum := sha256.Sum256(append([]byte(release+"\x00"+cc+"\x00"), config...))
	return version + "-" + hex.EncodeToString(sum[:6])
}

// prepared marks a tree that is complete.
const preparedMark = ".livepatch-prepared"

// Prepare configures the tree as the shipped kernel is and generates what compiling
// needs. It does nothing when that is done already.
func (t *Tree) Prepare(ctx context.Context, s *Shipped) error {
	mark := filepath.Join(t.Dir, preparedMark)
	if b, err := os.ReadFile(mark); err == nil && string(b) == t.Release {
		return nil
	}
	if err := t.checkTools(ctx); err != nil {
		return err
	}
	config, err := os.ReadFile(s.Config())
	if err != nil {
		return fmt.Errorf("read kernel configuration: %w", err)
	}
	symvers, err := os.ReadFile(s.Symvers())
	if err != nil {
		return fmt.Errorf("read exported symbols: %w", err)
	}
	err = errors.Join(os.WriteFile(filepath.Join(t.Dir, ".config"), config, 0o644), os.WriteFile(filepath.Join(t.Dir, "Module.symvers"), symvers, 0o644))
	if err != nil {
		return fmt.Errorf("write kernel configuration: %w", err)
	}
	if err := t.make(ctx, "olddefconfig"); err != nil {
		return fmt.Errorf("configure the sources: %w", err)
	}
	if err := t.checkConfig(config); err != nil {
		return err
	}
	if err := t.make(ctx, "prepare"); err != nil {
		return fmt.Errorf("prepare the sources: %w", err)
	}
	if err := t.probe(ctx); err != nil {
		return fmt.Errorf("learn how modules are compiled: %w", err)
	}
	return os.WriteFile(mark, []byte(t.Release), 0o644)
}

// tools are the programs that the kernel's makefiles and this package run.
const tools = "make patch diff flex bison bc perl pahole"

func (t *Tree) checkTools(ctx context.Context) error {
	out, err := t.Run(ctx, "", "sh", "-c", "for p in "+tools+"; do command -v $p >/dev/null || echo $p; done")
	if err != nil {
		return fmt.Errorf("look for tools: %w", err)
	}
	if missing := strings.Fields(string(out)); len(missing) > 0 {
		return livepatch.Errorf(livepatch.CodeUnsupported,
			"preparing the kernel's sources needs %s, which is not installed: on Debian and Ubuntu, install build-essential flex bison bc patch dwarves libelf-dev libssl-dev",
			strings.Join(missing, ", "))
	}
	return nil
}

// checkConfig refuses a configuration that this machine's tools changed, except
// where it only describes the tools.
func (t *Tree) checkConfig(want []byte) error {
	got, err := os.ReadFile(filepath.Join(t.Dir, ".config"))
	if err != nil {
		return fmt.Errorf("read kernel configuration: %w", err)
	}
	lines := func(b []byte) []string {
		var l []string
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "CONFIG_") && !describesTools(line) {
				l = append(l, line)
			}
		}
		slices.Sort(l)
		return l
	}
	a, b := lines(want), lines(got)
	for _, line := range a {
		if _, ok := slices.BinarySearch(b, line); !ok {
			return livepatch.Errorf(livepatch.CodeUnsupported, "the kernel's configuration cannot be had with this machine's tools: %s is lost; install the tools that built the kernel", line)
		}
	}
	return nil
}

func describesTools(line string) bool {
	for _, p := range []string{"CONFIG_CC_VERSION_TEXT=", "CONFIG_PAHOLE", "CONFIG_LD_VERSION=", "CONFIG_AS_VERSION=", "CONFIG_RUSTC", "CONFIG_BINDGEN"} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

func (t *Tree) make(ctx context.Context, args ...string) error {
	args = append([]string{"-s", fmt.Sprintf("-j%d", max(t.Jobs, 1)), "CC=" + t.CC, "HOSTCC=" + t.CC, "KERNELRELEASE=" + t.Release}, args...)
	_, err := t.Run(ctx, t.Dir, "make", args...)
	return err
}

// probeDir holds an empty module, compiled once to learn the command.
const probeDir = ".livepatch-probe"

func (t *Tree) probe(ctx context.Context) error {
	dir := filepath.Join(t.Dir, probeDir)
	err := errors.Join(os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "Kbuild"), []byte("obj-m := livepatch_probe.o\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "livepatch_probe.c"), []byte("#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n"), 0o644))
	if err != nil {
		return err
	}
	return t.make(ctx, "M="+dir, "livepatch_probe.o")
}

// Command is how kbuild makes an object.
type Command struct {
	// Source and Object are paths relative to the tree.
	Source, Object string
	// line is the shell command.
	line string
}

// Module is the module that the object is part of, with underscores; "" for what is
// built into the kernel.
func (c *Command) Module() string {
	if !strings.Contains(c.line, " -DMODULE ") {
		return ""
	}
	_, rest, _ := strings.Cut(c.line, " -D__KBUILD_MODNAME=kmod_")
	name, _, _ := strings.Cut(rest, " ")
	return name
}

// Commands returns how the sources' objects are made. What was never compiled in
// this tree is compiled once by make; sources that make cannot compile are in failed,
// with what it said.
func (t *Tree) Commands(ctx context.Context, sources []string) (cmds map[string]*Command, failed map[string]string, err error) {
	cmds, failed = map[string]*Command{}, map[string]string{}
	var missing []string
	for _, src := range sources {
		if c, err := t.command(src); err == nil {
			cmds[src] = c
		} else {
			missing = append(missing, src)
		}
	}
	if len(missing) == 0 {
		return cmds, failed, nil
	}
	var objects []string
	for _, src := range missing {
		objects = append(objects, strings.TrimSuffix(src, ".c")+".o")
	}
	unlock, err := lock(filepath.Join(t.Dir, ".livepatch-lock"))
	if err != nil {
		return nil, nil, err
	}
	makeErr := t.make(ctx, append([]string{"-k"}, objects...)...)
	unlock()
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	for _, src := range missing {
		c, err := t.command(src)
		if err != nil {
			said := "make built no object for it"
			var ee *ExecError
			if errors.As(makeErr, &ee) {
				said = firstError(ee.Output)
			}
			failed[src] = said
			continue
		}
		cmds[src] = c
	}
	return cmds, failed, nil
}

// command reads what kbuild saved beside the object.
func (t *Tree) command(source string) (*Command, error) {
	object := strings.TrimSuffix(source, ".c") + ".o"
	line, err := savedCommand(filepath.Join(t.Dir, filepath.Dir(object), "."+filepath.Base(object)+".cmd"))
	if err != nil {
		return nil, err
	}
	return &Command{Source: source, Object: object, line: line}, nil
}

// moduleCommand is how a module's own file outside the tree is compiled.
func (t *Tree) moduleCommand() (*Command, error) {
	base := filepath.Join(t.Dir, probeDir, "livepatch_probe")
	line, err := savedCommand(filepath.Join(filepath.Dir(base), ".livepatch_probe.o.cmd"))
	if err != nil {
		return nil, err
	}
	return &Command{Source: base + ".c", Object: base + ".o", line: line}, nil
}

// savedCommand reads a .cmd file: cmd_OBJECT := COMMAND until Linux 6.2,
// savedcmd_OBJECT := COMMAND since. Dollar signs are doubled for make.
func savedCommand(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	name, cmd, ok := strings.Cut(line, " := ")
	if !ok || !strings.HasPrefix(name, "cmd_") && !strings.HasPrefix(name, "savedcmd_") {
		return "", fmt.Errorf("%s does not begin with a saved command", path)
	}
	return strings.ReplaceAll(cmd, "$$", "$"), nil
}

// compile runs the command in root, which is the tree or a shadow of it, with other
// paths and with further flags. The source is relative to root or absolute.
func (t *Tree) compile(ctx context.Context, root string, c *Command, source, object string, flags ...string) error {
	words := strings.Split(c.line, " ")
	for i, w := range words {
		switch {
		case w == c.Object:
			words[i] = object
		case w == c.Source:
			words[i] = source
		case strings.HasPrefix(w, "-Wp,-MMD,"):
			words[i] = "-Wp,-MMD," + object + ".d"
		case w == "-c":
			words[i] = strings.Join(flags, " ") + " -c"
		case strings.Contains(w, "livepatch_probe"):
			words[i] = strings.ReplaceAll(w, "livepatch_probe", strings.TrimSuffix(filepath.Base(object), ".o"))
		}
	}
	_, err := t.Run(ctx, root, "sh", "-ec", strings.Join(words, " "))
	return err
}
