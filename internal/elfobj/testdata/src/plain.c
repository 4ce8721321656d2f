// SPDX-License-Identifier: GPL-2.0
// A module that is no livepatch.
#include <linux/module.h>
MODULE_LICENSE("GPL");
