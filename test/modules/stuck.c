// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch whose transition never ends: kthreadd sleeps inside the function that
 * is replaced, from boot to shutdown, and a signal does not get it out. The new
 * function never runs. A transition of it can be reversed.
 */
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>

static int livepatch_kthreadd(void *unused)
{
	return 0;
}

static struct klp_func funcs[] = {
	{
		.old_name = "kthreadd",
		.new_func = livepatch_kthreadd,
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
MODULE_DESCRIPTION("Cannot finish its transition");
MODULE_INFO(livepatch, "Y");
