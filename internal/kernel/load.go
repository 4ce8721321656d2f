package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"livepatch"
)

// Load gives the module in the file at path to the kernel. See LoadFile.
func (s *System) Load(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open module: %w", err)
	}
	defer f.Close()
	return s.LoadFile(ctx, f)
}

// LoadFile gives an open module file to the kernel, from its beginning. Passing
// the very file that was verified leaves no moment to exchange it.
//
// When it returns nil, the livepatch's init has run: the patch is enabled and its
// transition has begun (klp_enable_patch). The call cannot be interrupted, so ctx
// counts only before it. The error of a refusal has a code and a sentence, and
// carries what the kernel logged about it; nothing of the module is left in the
// kernel then.
func (s *System) LoadFile(ctx context.Context, f *os.File) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	mark := s.LogMark()
	err := s.loader.Load(f, "")
	if err == nil {
		return nil
	}
	name := strings.TrimSuffix(filepath.Base(f.Name()), ".ko")
	return refusal(name, err, s.logText(mark))
}

// refusal puts finit_module's error into words.
func refusal(name string, err error, log string) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	code, sentence := explainLoad(errno, log)
	if log != "" {
		return livepatch.Errorf(code, "the kernel refused module %s: %s (%w). It logged:\n%s", name, sentence, err, log)
	}
	return livepatch.Errorf(code, "the kernel refused module %s: %s (%w)", name, sentence, err)
}

const enrol = "enrol the operator's certificate (mokutil --import, then reboot and confirm) and try again"

// explainLoad names the reason of each errno that load_module and a livepatch's
// init can give. The sources are kernel/module/main.c, kernel/module/signing.c
// and kernel/livepatch/core.c.
func explainLoad(errno syscall.Errno, log string) (livepatch.Code, string) {
	switch errno {
	// module_sig_check: with sig_enforce, an unsigned module and one whose key
	// is unknown are both EKEYREJECTED; a signature that does not fit is so
	// always. The others come from verify_pkcs7_signature.
	case syscall.EKEYREJECTED, syscall.ENOKEY:
		return livepatch.CodeUntrustedKey, "no key that it trusts verifies the module's signature; " + enrol
	case syscall.EKEYEXPIRED, syscall.EKEYREVOKED:
		return livepatch.CodeUntrustedKey, "the key that signed it has expired or was revoked; sign it with a current key"
	case syscall.EBADMSG, syscall.ENODATA, syscall.ENOPKG, syscall.ELIBBAD:
		return livepatch.CodeUntrustedKey, "it cannot read the module's signature; publish the module again"
	case syscall.EPERM:
		return explainPermission(log)
	case syscall.EACCES:
		return livepatch.CodeNotPrivileged, "a security module such as SELinux or AppArmor forbids it; look at its audit log"
	// add_unformed_module.
	case syscall.EEXIST:
		return livepatch.CodeConflict, "a module of this name is loaded already; remove it first"
	// add_unformed_module while one of the same name leaves; __klp_enable_patch
	// while another transition runs.
	case syscall.EBUSY:
		return livepatch.CodeConflict, "another livepatch is in transition, or a module of this name is just leaving; try again when it is done"
	// elf_validity_check, check_modstruct_version, same_magic.
	case syscall.ENOEXEC:
		return livepatch.CodeWrongKernel, "it is no module for this kernel (format, version magic or symbol versions differ)"
	case syscall.ENOENT:
		return livepatch.CodeRefused, "it uses or patches a symbol that this kernel does not have"
	// klp_enable_patch and klp_init_func; also bad relocations.
	case syscall.EINVAL:
		return livepatch.CodeRefused, "the module is malformed or does not fit what is loaded (an incompatible livepatch, an ambiguous symbol, a bad relocation)"
	case syscall.ENOMEM:
		return livepatch.CodeRefused, "it has no memory for it; free some and try again"
	// klp_enable_patch.
	case syscall.ENODEV:
		return livepatch.CodeUnsupported, "livepatching did not initialise in it; look for errors at the beginning of its log"
	case syscall.ENOSYS, syscall.EOPNOTSUPP:
		return livepatch.CodeUnsupported, "it is built without loadable modules, or has no reliable stack traces on this architecture (needed before Linux 5.2)"
	case syscall.ETXTBSY:
		return livepatch.CodeConflict, "the module's file is open for writing"
	case syscall.EINTR:
		return livepatch.CodeConflict, "the call was interrupted; try again"
	}
	return livepatch.CodeRefused, errno.Error()
}

// explainPermission tells EPERM's reasons apart: may_init_module says it for a
// missing capability and for modules_disabled without a word in the log,
// module_sig_check for lockdown and blacklisted for module_blacklist= with one.
func explainPermission(log string) (livepatch.Code, string) {
	switch {
	case strings.Contains(log, "Lockdown:"):
		return livepatch.CodeUntrustedKey, "it is locked down and trusts no key that signed it; " + enrol
	case strings.Contains(log, "is blacklisted"):
		return livepatch.CodeRefused, "the module is on the kernel's command line as module_blacklist=; take it off and reboot"
	}
	return livepatch.CodeNotPrivileged, "loading modules needs CAP_SYS_MODULE and kernel.modules_disabled=0 (see livepatch doctor)"
}

// How long Remove waits for the kernel to let go of a module. It frees a replaced
// or disabled patch from a work queue (klp_free_patch_async), which takes
// milliseconds unless the machine is very busy.
const (
	removeTimeout = 30 * time.Second
	removePoll    = 50 * time.Millisecond
)

// Remove unloads a module whose patch is disabled or replaced. A module that is
// not loaded is no error. It waits up to 30 seconds while the kernel still holds
// the module; then the error has CodeConflict. It never forces.
func (s *System) Remove(ctx context.Context, name string) error {
	if !livepatch.ValidModuleName(name) {
		return livepatch.Errorf(livepatch.CodeInvalid, "%q is not a module's name", name)
	}
	deadline := time.Now().Add(removeTimeout)
	for {
		err := s.loader.Unload(name)
		switch {
		case err == nil, errors.Is(err, syscall.ENOENT):
			return nil
		case errors.Is(err, syscall.EPERM):
			return livepatch.Errorf(livepatch.CodeNotPrivileged, "module %s cannot be removed: that needs CAP_SYS_MODULE and kernel.modules_disabled=0: %w", name, err)
		case errors.Is(err, syscall.EINTR):
		// EAGAIN: references are left, or another module uses it. EBUSY: its
		// init or exit runs, or it has no exit (delete_module).
		case !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EBUSY):
			return fmt.Errorf("remove module %s: %w", name, err)
		case !time.Now().Before(deadline):
			return livepatch.Errorf(livepatch.CodeConflict, "module %s is still in use by the kernel after %s; it stays loaded without effect until a reboot: %w", name, removeTimeout, err)
		}
		if err := sleep(ctx, removePoll); err != nil {
			return fmt.Errorf("remove module %s: %w", name, err)
		}
	}
}

// sleep waits for d or for the end of ctx, whose error it returns then.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
