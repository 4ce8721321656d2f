package sim

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestTmp(t *testing.T) {
	c := Default()
	f := func(k string, d float64) float64 {
		if v, err := strconv.ParseFloat(os.Getenv(k), 64); err == nil {
			return v
		}
		return d
	}
	c.Lethal = f("L", 0.05)
	c.Runs = int(f("R", 200))
	c.HealthyRuns = int(f("H", 10))
	c.Machines = int(f("N", 10000))
	c.Jobs = 1
	c.Seed = uint64(f("S", 7))
	c.Stratum = os.Getenv("ST")
	c.BadDay = f("B", 0)
	c.Silent = f("SI", 0.1)
	if r := os.Getenv("RULES"); r != "" {
		c.Rules = strings.Split(r, ",")
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	rows, err := Run(context.Background(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := func(x *float64) string {
		if x == nil {
			return "-"
		}
		return fmt.Sprintf("%.1f", *x)
	}
	for _, r := range rows {
		fmt.Printf("%-11s halted %.3f before-gen %.3f hurt %.0f/%.0f killed %.0f/%.0f toHalt %s full %s false %d/%d wald %s\n", r.Rule, r.HaltedShare, r.BeforeGeneral, r.HurtMedian, r.HurtP95, r.KilledMedian, r.KilledP95, p(r.HoursToHalt), p(r.HoursToFull), r.FalseHalts, r.HealthyRuns, p(r.WaldBound))
	}
	fmt.Println(time.Since(t0))
}
