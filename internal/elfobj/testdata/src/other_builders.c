// SPDX-License-Identifier: GPL-2.0
// How kpatch-build (-DKPATCH) and klp-build list what a module replaces: tables that
// the module turns into struct klp_patch when it is loaded.
#define INFO(n, s) static const char n[] __attribute__((__section__(".modinfo"), __used__, __aligned__(1))) = s
INFO(livepatch, "livepatch=Y");
INFO(name, "name=other");
INFO(vermagic, "vermagic=6.19.0 SMP ");

static void __attribute__((__used__)) first(void) { }
static void __attribute__((__used__)) second(void) { }

struct patch { void *mod, *objs, *states; _Bool replace; };

void __attribute__((__section__(".init.text"))) fill(struct patch *p)
{
	p->replace = 1;
}

#ifdef KPATCH
struct entry { unsigned long new_addr, new_size, old_addr, old_size, sympos; const char *name, *objname; };
static const struct entry funcs[] __attribute__((__section__(".kpatch.funcs"), __used__)) = {
	{ (unsigned long)first, 16, 0, 0, 0, "tcp_v4_rcv", "vmlinux" },
	{ (unsigned long)second, 16, 0, 0, 3, "fuse_init", "fuse" },
};
#else
struct func { const char *old_name; void *new_func; unsigned long sympos; };
struct object { const char *name; struct func *funcs; void *callbacks[4]; unsigned int nr_funcs; };
static struct func funcs[] __attribute__((__section__(".init.klp_funcs"), __used__)) = {
	{ "tcp_v4_rcv", first, 0 },
};
static struct func fuse[] __attribute__((__section__(".init.klp_funcs.fuse"), __used__)) = {
	{ "fuse_init", second, 3 },
};
static struct object objects[] __attribute__((__section__(".init.klp_objects"), __used__)) = {
	{ .funcs = funcs, .nr_funcs = 1 },
	{ .name = "fuse", .funcs = fuse, .nr_funcs = 1 },
};
#endif
