// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch of a module, the one in target.c, rather than of the kernel.
 */
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>

static int patched_target_show(struct seq_file *m, void *v)
{
	seq_puts(m, "patched target\n");
	return 0;
}

static struct klp_func funcs[] = {
	{
		.old_name = "livepatch_target_show",
		.new_func = patched_target_show,
	}, { }
};

static struct klp_object objs[] = {
	{ .name = "livepatch_target", .funcs = funcs }, /* a module */
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
	.replace = true,
};

static int __init livepatch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit livepatch_exit(void)
{
}

module_init(livepatch_init);
module_exit(livepatch_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Patches the module livepatch_target");
MODULE_INFO(livepatch, "Y");
