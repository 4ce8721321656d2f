// SPDX-License-Identifier: GPL-2.0
// Compiled twice, without and with -DFIXED: what a fix does to one file.
int printk(const char *fmt, ...);
int ext(int x);

#define noinline __attribute__((__noinline__))

static int shared = 7;
int exported_state;

static noinline int helper(int x)
{
	static int calls;

	return ext(++calls + shared + x);
}

#ifdef FIXED
/* A new function with state of its own, before everything that is numbered. */
static noinline int check(int x)
{
	static int calls;
	static int refused;

	if (x < 0)
		refused++;
	return printk("refused %d of %d\n", refused, ++calls);
}
#endif

int changed(int x)
{
	static int seen;

#ifdef FIXED
	if (check(x))
		return -22;
#endif
	seen += x;
	exported_state = seen;
	return helper(seen);
}

int (*pointer(void))(int)
{
#ifdef FIXED
	printk("pointer\n");
#endif
	return changed;
}

int unchanged(int x)
{
	static int seen;
	static int calls;

	seen += x;
	printk("unchanged %d\n", seen);
	return helper(++calls);
}
