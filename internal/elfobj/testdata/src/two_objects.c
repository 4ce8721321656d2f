// SPDX-License-Identifier: GPL-2.0
// A livepatch of one function of vmlinux and two of a module, as a person writes it.
#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/seq_file.h>

static int new_cmdline(struct seq_file *m, void *v)
{
	seq_printf(m, "%s\n", "patched");
	return 0;
}

static void new_timeout(void)
{
}

static int pre_patch(struct klp_object *obj)
{
	return 0;
}

static struct klp_func vmlinux_funcs[] = {
	{ .old_name = "cmdline_proc_show", .new_func = new_cmdline, },
	{ }
};

static struct klp_func loop_funcs[] = {
	{ .old_name = "loop_timeout", .new_func = new_timeout, .old_sympos = 2, },
	{ .old_name = "loop_probe", .new_func = new_timeout, },
	{ }
};

static struct klp_object objs[] = {
	{ .funcs = vmlinux_funcs, .callbacks = { .pre_patch = pre_patch } },
	{ .name = "loop", .funcs = loop_funcs, },
	{ }
};

static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .replace = true };

static int __init two_objects_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit two_objects_exit(void)
{
}

module_init(two_objects_init);
module_exit(two_objects_exit);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
