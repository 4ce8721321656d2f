// Command probe does inside a virtual machine one thing that package kernel can do,
// and prints what came of it as JSON, for the tests in test/kernel.
//
//	probe inspect
//	probe requirements
//	probe loaded
//	probe leftovers
//	probe load FILE
//	probe wait MODULE TIMEOUT
//	probe disable MODULE TIMEOUT
//	probe reverse MODULE TIMEOUT
//	probe remove MODULE
//	probe baseline
//	probe evidence BASELINE
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"livepatch"
	"livepatch/internal/kernel"
)

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(2)
	}
}

// answer is what is printed.
type answer struct {
	Result any            `json:"result,omitempty"`
	Error  string         `json:"error,omitempty"`
	Code   livepatch.Code `json:"code,omitempty"`
	// Tasks are those that hold up a transition.
	Tasks []kernel.Task `json:"tasks,omitempty"`
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	args = append(args, "", "", "")
	timeout := time.Minute
	if args[2] != "" {
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		timeout = d
	}
	result, err := do(ctx, kernel.Open("/", kernel.Syscalls()), args[0], args[1], timeout)
	a := answer{Result: result, Code: livepatch.CodeOf(err)}
	if err != nil {
		a.Error = err.Error()
	}
	var stuck *kernel.StuckError
	if errors.As(err, &stuck) {
		a.Tasks = stuck.Tasks
	}
	return json.NewEncoder(stdout).Encode(a)
}

func do(ctx context.Context, s *kernel.System, what, name string, timeout time.Duration) (any, error) {
	switch what {
	case "inspect":
		return s.Inspect()
	case "requirements":
		facts, err := s.Inspect()
		return kernel.Requirements(facts), errors.Join(err, kernel.Refusal(facts))
	case "loaded":
		return s.Loaded()
	case "leftovers":
		return s.Leftovers()
	case "load":
		return nil, s.Load(ctx, name)
	case "wait":
		return s.WaitTransition(ctx, name, timeout)
	case "disable":
		return nil, s.Disable(ctx, name, timeout)
	case "reverse":
		return nil, s.Reverse(ctx, name, timeout)
	case "remove":
		return nil, s.Remove(ctx, name)
	case "baseline":
		return s.Baseline(), nil
	case "evidence":
		var b kernel.Baseline
		if err := json.Unmarshal([]byte(name), &b); err != nil {
			return nil, err
		}
		return s.EvidenceSince(b)
	}
	return nil, fmt.Errorf("nothing is called %q", what)
}
