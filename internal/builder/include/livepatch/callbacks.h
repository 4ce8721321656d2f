/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For fixes that need more than new code. A changed C file may include this header
 * as <livepatch/callbacks.h>.
 *
 * Callbacks run when the livepatch goes on or off in the object (vmlinux or the
 * module) that the file belongs to. Of each kind an object can have one. A pre_patch
 * callback that returns an error keeps the livepatch from being loaded.
 *
 * A new member of an old structure goes into a shadow variable:
 * klp_shadow_get_or_alloc(object, ID, size, GFP_ATOMIC, NULL, NULL) where it is
 * written, klp_shadow_get(object, ID) where it is read, klp_shadow_free(object, ID,
 * NULL) where the object is freed; klp_shadow_free_all(ID, NULL) in post_unpatch.
 */
#ifndef _LIVEPATCH_CALLBACKS_H
#define _LIVEPATCH_CALLBACKS_H

#include <linux/livepatch.h>

#define LIVEPATCH_CALLBACK(type, kind, fn) \
	static type (*const livepatch_##kind)(struct klp_object *obj) __used __section(".livepatch." #kind) = fn

#define LIVEPATCH_PRE_PATCH(fn)		LIVEPATCH_CALLBACK(int, pre_patch, fn)
#define LIVEPATCH_POST_PATCH(fn)	LIVEPATCH_CALLBACK(void, post_patch, fn)
#define LIVEPATCH_PRE_UNPATCH(fn)	LIVEPATCH_CALLBACK(void, pre_unpatch, fn)
#define LIVEPATCH_POST_UNPATCH(fn)	LIVEPATCH_CALLBACK(void, post_unpatch, fn)

#endif
