// SPDX-License-Identifier: GPL-2.0
// Compiled without and with each of -DDATA, -DINIT, -DNOHOOK, -DCONSTANT, -DLISTED:
// changes that cannot be made in a running kernel, and one that can.
int ext(int x);

struct ops {
	int (*run)(int x);
	int limit;
};

static int run(int x)
{
	return ext(x);
}

#ifdef DATA
struct ops ops = { run, 20 };
#else
struct ops ops = { run, 10 };
#endif

static const int limits[8] = { 1, 2, 3,
#ifdef CONSTANT
	40,
#else
	4,
#endif
	5, 6, 7, 8 };

int limit(int i)
{
	return limits[i & 7];
}

int __attribute__((__section__(".init.text"), __cold__)) setup(void)
{
#ifdef INIT
	ext(1);
#endif
	return ext(0);
}

int __attribute__((__no_instrument_function__)) quiet(int x)
{
#ifdef NOHOOK
	x++;
#endif
	return ext(x);
}

#ifdef LISTED
static void *const listed __attribute__((__section__(".initcall6.init"), __used__)) = setup;
#endif

struct layout {
	int a;
#ifdef LAYOUT
	int b;
#endif
	int c;
};

int layout(struct layout *l)
{
	return ext(l->c);
}
