package main

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one figure. Of those without a budget, nothing is demanded.
type row struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Measured float64 `json:"measured"`
	// Budget is the most that Measured may be; nil for figures that only inform.
	Budget *float64 `json:"budget,omitempty"`
	// Yardstick says what Beside was measured of; empty for none.
	Yardstick string  `json:"yardstick,omitempty"`
	Beside    float64 `json:"beside,omitempty"`
	// Note says how Measured is made up.
	Note string `json:"note,omitempty"`
}

func atMost(v float64) *float64 { return &v }

func (r row) missed() bool { return r.Budget != nil && r.Measured > *r.Budget }

// report is what -json prints.
type report struct {
	Machine string `json:"machine"`
	Rows    []row  `json:"rows"`
}

// machine says what the figures are of.
func machine() string {
	model := "unknown processor"
	b, _ := os.ReadFile("/proc/cpuinfo") // for people only
	for line := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d processors, %s, %s/%s", model, runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// table is Markdown that reads well in a terminal, too.
func table(rows []row) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	line := func(cells ...string) { fmt.Fprintln(w, "| "+strings.Join(cells, "\t| ")+"\t|") }
	line("What", "Budget", "Measured", "", "Yardstick", "Ratio")
	line("---", "---", "---", "---", "---", "---")
	for _, r := range rows {
		budget, ok, yardstick, ratio := "", "", "", ""
		if r.Budget != nil {
			budget, ok = figure(*r.Budget, r.Unit), "ok"
		}
		if r.missed() {
			ok = "MISSED"
		}
		if r.Yardstick != "" {
			yardstick = figure(r.Beside, r.Unit) + ": " + r.Yardstick
		}
		if r.Beside > 0 {
			ratio = fmt.Sprintf("%.1f", r.Measured/r.Beside)
		}
		measured := figure(r.Measured, r.Unit)
		if r.Note != "" {
			measured += " (" + r.Note + ")"
		}
		line(r.Name, budget, measured, ok, yardstick, ratio)
	}
	_ = w.Flush() // into memory
	return b.String()
}

func figure(v float64, unit string) string {
	if v == float64(int64(v)) {
		return strings.TrimSpace(fmt.Sprintf("%d %s", int64(v), unit))
	}
	return strings.TrimSpace(fmt.Sprintf("%.1f %s", v, unit))
}

// verdict is an error that names the budgets that were missed.
func verdict(rows []row) error {
	var missed []string
	for _, r := range rows {
		if r.missed() {
			missed = append(missed, r.Name)
		}
	}
	if len(missed) > 0 {
		return fmt.Errorf("over budget: %s", strings.Join(missed, "; "))
	}
	return nil
}

// The marks in the document between which the table stands.
const (
	markBegin = "<!-- bench -->\n"
	markEnd   = "<!-- /bench -->\n"
)

// replaceTable puts the table and the machine into a document.
func replaceTable(path string, rows []row) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok1 := strings.Cut(string(b), markBegin)
	_, after, ok2 := strings.Cut(rest, markEnd)
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no lines %q and %q to put the table between", path, strings.TrimSpace(markBegin), strings.TrimSpace(markEnd))
	}
	text := before + markBegin + "\n" + table(rows) + "\nMeasured on: " + machine() + ".\n\n" + markEnd + after
	return os.WriteFile(path, []byte(text), 0o644)
}

// median of an odd number of values.
func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
