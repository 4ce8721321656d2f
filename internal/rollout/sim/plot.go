package sim

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
)

// The plot's measures in pixels.
const (
	plotWidth, plotHeight           = 910, 490
	plotLeft, plotTop               = 70, 85
	plotInnerWidth, plotInnerHeight = 600, 340
)

// Plot draws, as SVG, for each rule the share of runs halted by the time that so
// many machines had got the patch, on a logarithmic scale.
func Plot(w io.Writer, c Config, rows []Row) error {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", plotWidth, plotHeight)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	text := func(x, y float64, anchor, colour, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">`, x, y, anchor, colour)
		_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
		b.WriteString("</text>\n")
	}
	line := func(x1, y1, x2, y2 float64, style string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>`+"\n", x1, y1, x2, y2, style)
	}
	decades := math.Ceil(math.Log10(max(10, float64(c.Machines))))
	x := func(machines float64) float64 {
		return plotLeft + plotInnerWidth*math.Log10(max(machines, 1))/decades
	}
	y := func(share float64) float64 { return plotTop + plotInnerHeight*(1-share) }

	text(plotLeft, 30, "start", "#111", "Machines that got a bad patch before its rollout was halted")
	text(plotLeft, 50, "start", "#555", subtitle(c))
	for d := 0.0; d <= decades; d++ {
		line(x(math.Pow(10, d)), y(0), x(math.Pow(10, d)), y(1), `stroke="#ddd"`)
		text(x(math.Pow(10, d)), y(0)+20, "middle", "#555", fmt.Sprintf("%.0f", math.Pow(10, d)))
	}
	for _, s := range []float64{0, 0.25, 0.5, 0.75, 1} {
		line(x(1), y(s), x(math.Pow(10, decades)), y(s), `stroke="#ddd"`)
		text(plotLeft-8, y(s)+4, "end", "#555", fmt.Sprintf("%.0f %%", 100*s))
	}
	text(10, y(1)-18, "start", "#555", "runs halted")
	text(plotLeft+plotInnerWidth/2, y(0)+42, "middle", "#555", "machines that got it")
	colours := []string{"#c8102e", "#1f77b4", "#17a2b8", "#7f7f7f", "#2ca02c", "#9467bd"}
	for i, r := range rows {
		colour := colours[i%len(colours)]
		b.WriteString(curve(r, x, y, math.Pow(10, decades), colour, i == 0))
		at := float64(plotTop + 10 + 24*i)
		line(plotLeft+plotInnerWidth+20, at-4, plotLeft+plotInnerWidth+44, at-4, fmt.Sprintf(`stroke="%s" stroke-width="2.5"`, colour))
		label := r.Rule + ": never"
		switch {
		case r.HaltedShare >= 0.5:
			label = fmt.Sprintf("%s: median %.0f", r.Rule, r.HurtMedian)
		case r.HaltedShare > 0:
			label = fmt.Sprintf("%s: %.1f %% halted", r.Rule, 100*r.HaltedShare)
		}
		text(plotLeft+plotInnerWidth+50, at, "start", "#111", label)
	}
	if len(rows) > 0 && rows[0].WaldBound != nil {
		at := x(*rows[0].WaldBound)
		line(at, y(0), at, y(1), `stroke="#111" stroke-dasharray="5 4"`)
		text(at+5, y(1)-5, "start", "#111", fmt.Sprintf("bound for counts alone: %.0f", *rows[0].WaldBound))
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// subtitle says what was simulated.
func subtitle(c Config) string {
	where := "of all machines"
	if c.Stratum != "" {
		where = "of the machines with " + c.Stratum
	}
	return fmt.Sprintf("%d machines, the patch kills %g %% %s, %d runs from seed %d; higher and further left is better", c.Machines, 100*c.Lethal, where, c.Runs, c.Seed)
}

// curve is the step function of one rule.
func curve(r Row, x, y func(float64) float64, most float64, colour string, strong bool) string {
	var points strings.Builder
	fmt.Fprintf(&points, "%.1f,%.1f", x(1), y(0))
	for i, hurt := range r.hurts {
		fmt.Fprintf(&points, " %.1f,%.1f %.1f,%.1f", x(hurt), y(float64(i)/float64(r.Runs)), x(hurt), y(float64(i+1)/float64(r.Runs)))
	}
	fmt.Fprintf(&points, " %.1f,%.1f", x(most), y(float64(len(r.hurts))/float64(r.Runs)))
	width := 1.5
	if strong {
		width = 3
	}
	return fmt.Sprintf(`<polyline points="%s" fill="none" stroke="%s" stroke-width="%g"/>`+"\n", points.String(), colour, width)
}
