package main

import (
	"context"
	"os"
	"os/exec"
	"time"
)

// statusRuns is how often each command is run.
const statusRuns = 31

// status times `livepatch status` as a whole process, in turn with its yardsticks.
func status(ctx context.Context, s *stage) ([]row, error) {
	commands := [][]string{{s.bin("livepatch"), "status"}, {s.bin("hello")}, {"/bin/true"}}
	times := make([][]time.Duration, len(commands))
	for range statusRuns {
		for i, args := range commands {
			c := exec.CommandContext(ctx, args[0], args[1:]...)
			c.Env = append(os.Environ(), "LIVEPATCH_SOCKET="+s.socket)
			begin := time.Now()
			if _, err := output(c); err != nil {
				return nil, err
			}
			times[i] = append(times[i], time.Since(begin))
		}
	}
	took := millis(median(times[0]))
	return []row{
		{Name: "livepatch status: whole process", Unit: "ms", Measured: took, Budget: atMost(20), Yardstick: "Go program that says hello", Beside: millis(median(times[1]))},
		{Name: "the same", Unit: "ms", Measured: took, Yardstick: "/bin/true", Beside: millis(median(times[2]))},
	}, nil
}
