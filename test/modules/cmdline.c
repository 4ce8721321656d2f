// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch with an effect that everybody can see: /proc/cmdline shows another
 * text, with PATCH_VERSION in it. It replaces whatever livepatch was there before.
 */
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#ifndef PATCH_VERSION
#define PATCH_VERSION 1
#endif

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_printf(m, "this has been live patched, version %d\n", PATCH_VERSION);
	return 0;
}

static struct klp_func funcs[] = {
	{
		.old_name = "cmdline_proc_show",
		.new_func = livepatch_cmdline_proc_show,
	}, { }
};

static struct klp_object objs[] = {
	{ .funcs = funcs }, /* vmlinux */
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
MODULE_DESCRIPTION("Shows another /proc/cmdline");
MODULE_INFO(livepatch, "Y");
