package kernel_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
)

var holder = kernel.Task{PID: 412, TID: 415, Comm: "reader", Stack: "pipe_read+0x2a8/0x3f0\nvfs_read+0x1f1/0x230\n"}

func TestTransitionTakesItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		k.TransitionTime(1500 * time.Millisecond)
		load(t, s, patch("lp_1"))
		if p, err := s.Patch("lp_1"); err != nil || !p.Transition {
			t.Fatalf("patch = %+v, %v; want it in transition", p, err)
		}
		tr, err := s.WaitTransition(t.Context(), "lp_1", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if tr.Duration < 1500*time.Millisecond || tr.Duration > 2500*time.Millisecond {
			t.Errorf("duration = %v, want 1.5 s and at most a poll", tr.Duration)
		}
	})
}

func TestStuckTransitionNamesTasksAndIsReversed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		k.HoldApply(holder)
		load(t, s, patch("lp_1"))

		_, err := s.WaitTransition(t.Context(), "lp_1", time.Minute)
		var stuck *kernel.StuckError
		if livepatch.CodeOf(err) != livepatch.CodeStuck || !errors.As(err, &stuck) {
			t.Fatalf("WaitTransition = %v, want it stuck", err)
		}
		if !strings.Contains(err.Error(), "reader (415)") {
			t.Errorf("error %q does not name the task", err)
		}
		if !slices.Equal(stuck.Tasks, []kernel.Task{{PID: 412, TID: 415, Comm: "reader", Stack: strings.TrimSpace(holder.Stack)}}) {
			t.Errorf("tasks = %+v", stuck.Tasks)
		}
		if !strings.Contains(stuck.Evidence(), "pipe_read+0x2a8") {
			t.Errorf("evidence has no stack: %q", stuck.Evidence())
		}

		if err := s.Reverse(t.Context(), "lp_1", time.Minute); err != nil {
			t.Fatal(err)
		}
		if got := loaded(t, s); len(got) != 0 || s.HasModule("lp_1") {
			t.Errorf("loaded = %v, module there: %v; want neither", got, s.HasModule("lp_1"))
		}
		if want := []string{"load lp_1", "disable lp_1", "unload lp_1"}; !slices.Equal(k.Calls(), want) {
			t.Errorf("calls = %v, want %v: a transition is never forced", k.Calls(), want)
		}
	})
}

func TestReverseThatIsHeldUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		load(t, s, patch("lp_1"))
		k.HoldRemove(holder)
		err := s.Disable(t.Context(), "lp_1", time.Minute)
		var stuck *kernel.StuckError
		if !errors.As(err, &stuck) || !stuck.Reversing || len(stuck.Tasks) != 1 {
			t.Fatalf("Disable = %v, want it stuck on one task", err)
		}
		if !s.HasModule("lp_1") {
			t.Error("the module was removed while code of it may run")
		}
		if tasks := s.BlockingTasks("lp_1"); len(tasks) != 1 || tasks[0].Comm != "reader" {
			t.Errorf("blocking = %+v", tasks)
		}
	})
}

func TestDisable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		load(t, s, patch("lp_1"))
		k.TransitionTime(time.Second)
		for range 2 { // done again, it is done already
			if err := s.Disable(t.Context(), "lp_1", time.Minute); err != nil {
				t.Fatal(err)
			}
			if got := loaded(t, s); len(got) != 0 || s.HasModule("lp_1") {
				t.Errorf("loaded = %v, module there: %v; want neither", got, s.HasModule("lp_1"))
			}
		}
	})
}

func TestDisableDuringOtherTransition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		load(t, s, patch("lp_1"))
		k.HoldApply(holder)
		load(t, s, patch("lp_2"))
		err := s.Disable(t.Context(), "lp_1", time.Minute)
		if livepatch.CodeOf(err) != livepatch.CodeConflict {
			t.Errorf("Disable = %v, want a conflict", err)
		}
	})
}

func TestSomebodyElseReversesTransition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		k.HoldApply(holder)
		load(t, s, patch("lp_1"))
		time.AfterFunc(5*time.Second, func() {
			if err := k.SetEnabled(k.Root+"/sys/kernel/livepatch/lp_1/enabled", false); err != nil {
				t.Error(err)
			}
		})
		_, err := s.WaitTransition(t.Context(), "lp_1", time.Minute)
		if livepatch.CodeOf(err) != livepatch.CodeConflict || !strings.Contains(err.Error(), "somebody else") {
			t.Errorf("WaitTransition = %v, want a conflict", err)
		}
	})
}

func TestWaitEndsWithContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := kerneltest.New(t)
		s := k.System()
		k.HoldApply(holder)
		load(t, s, patch("lp_1"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.WaitTransition(ctx, "lp_1", time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitTransition = %v, want the context's error", err)
		}
	})
}

func TestWaitForUnknownPatch(t *testing.T) {
	t.Parallel()
	k := kerneltest.New(t)
	_, err := k.System().WaitTransition(t.Context(), "lp_9", time.Minute)
	if livepatch.CodeOf(err) != livepatch.CodeNotFound {
		t.Errorf("WaitTransition = %v, want not found", err)
	}
	for _, name := range []string{"", "..", "a/b", "../../proc"} {
		if _, err := k.System().Patch(name); livepatch.CodeOf(err) != livepatch.CodeInvalid {
			t.Errorf("Patch(%q) = %v, want invalid", name, err)
		}
	}
}
