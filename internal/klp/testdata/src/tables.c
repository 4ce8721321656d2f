// SPDX-License-Identifier: GPL-2.0
// What the builder compiles for a module, without the kernel's headers: a struct
// klp_patch, one object with two functions, struct module and .modinfo.
struct module { int state; char pad[20]; char name[56]; };
struct func { const char *old_name; void *new_func; unsigned long old_sympos; };
struct object { const char *name; struct func *funcs; void *callbacks[4]; };
struct patch { struct module *mod; struct object *objs; void *states; _Bool replace; };

extern char lp_new_0[], lp_new_1[];

static struct func funcs_0[] = {
	{ "changed", lp_new_0, 0 },
	{ "pointer", lp_new_1, 2 },
	{ 0 },
};

static struct object objs[] = {
	{ .funcs = funcs_0 },
	{ 0 },
};

struct module __this_module __attribute__((__section__(".gnu.linkonce.this_module"))) = { .name = "lp" };
static struct patch patch = { .mod = &__this_module, .objs = objs, .replace = 1 };

int klp_enable_patch(struct patch *p);

int __attribute__((__section__(".init.text"))) init_module(void)
{
	return klp_enable_patch(&patch);
}

#define INFO(n, s) static const char n[] __attribute__((__section__(".modinfo"), __used__, __aligned__(1))) = s
INFO(livepatch, "livepatch=Y");
INFO(name, "name=lp");
INFO(vermagic, "vermagic=6.1.0-47-cloud-amd64 SMP ");
