// SPDX-License-Identifier: GPL-2.0
/*
 * A module to be patched, by object.c: /proc/livepatch_target shows a text.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

static noinline int livepatch_target_show(struct seq_file *m, void *v)
{
	seq_puts(m, "original target\n");
	return 0;
}

static int __init livepatch_target_init(void)
{
	if (!proc_create_single("livepatch_target", 0444, NULL, livepatch_target_show))
		return -ENOMEM;
	return 0;
}

static void __exit livepatch_target_exit(void)
{
	remove_proc_entry("livepatch_target", NULL);
}

module_init(livepatch_target_init);
module_exit(livepatch_target_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Something to patch");
