package sim

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"livepatch/internal/rollout"
)

// Row is what one rule did.
type Row struct {
	Rule string `json:"rule"`
	Runs int    `json:"runs"`
	// HaltedShare is the share of runs that were halted, BeforeGeneral the share
	// that was halted before general.
	HaltedShare   float64 `json:"halted_share"`
	BeforeGeneral float64 `json:"halted_before_general_share"`
	// Hurt counts the machines that got the patch until the halt, or at all when
	// there was none: median and 95th percentile over the runs.
	HurtMedian float64 `json:"hurt_median"`
	HurtP95    float64 `json:"hurt_p95"`
	// Killed counts those of them that died of it.
	KilledMedian float64 `json:"killed_median"`
	KilledP95    float64 `json:"killed_p95"`
	// HoursToHalt is the median time from the start to the halt; nil if there was
	// none.
	HoursToHalt *float64 `json:"hours_to_halt"`
	// HoursToFull is the median time in which a harmless patch gets to 99 % of the
	// fleet; nil if it never did.
	HoursToFull *float64 `json:"hours_to_full"`
	// FalseHalts is the number of rollouts of a harmless patch that were halted, of
	// HealthyRuns.
	FalseHalts  int `json:"false_halts"`
	HealthyRuns int `json:"healthy_runs"`
	// WaldBound is how many machines a test of counts alone needs in the mean at
	// this background and death rate; nil where nothing dies.
	WaldBound *float64 `json:"wald_bound"`

	// hurts are sorted, for the plot; those of runs without a halt are left out.
	hurts []float64
}

// Run simulates c, which must be valid, and returns one row for each rule.
// progress, if not nil, is called now and then from one goroutine at a time.
func Run(ctx context.Context, c Config, progress func(done, total int)) ([]Row, error) {
	harmful, err := simulate(ctx, c, c.Runs, progress)
	if err != nil {
		return nil, err
	}
	healthy := c
	healthy.Lethal = 0
	harmless := harmful
	if c.Lethal > 0 {
		if harmless, err = simulate(ctx, healthy, c.HealthyRuns, progress); err != nil {
			return nil, err
		}
	}
	var rows []Row
	for i, name := range c.Rules {
		rows = append(rows, row(&c, name, harmful[i], harmless[i]))
	}
	return rows, nil
}

// simulate returns the outcomes of n runs by rule.
func simulate(ctx context.Context, c Config, n int, progress func(done, total int)) ([][]outcome, error) {
	out := make([][]outcome, len(c.Rules))
	for i := range out {
		out[i] = make([]outcome, n)
	}
	var (
		wg      sync.WaitGroup
		next    atomic.Int64
		mu      sync.Mutex
		done    int
		failure error
	)
	ids := names(c.Machines)
	for range min(c.Jobs, n) {
		wg.Go(func() {
			w, f := newWorld(&c, ids), &fleet{}
			for ctx.Err() == nil {
				run := int(next.Add(1)) - 1
				if run >= n {
					return
				}
				err := w.compare(f, run, out)
				mu.Lock()
				if done++; progress != nil {
					progress(done, n)
				}
				failure = cmp.Or(failure, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return out, cmp.Or(failure, ctx.Err())
}

func newWorld(c *Config, ids []string) *world {
	cells, groups := cellsOf(c.Stratum)
	w := &world{cfg: c, cells: cells, ids: ids, online: make([]int, groups)}
	for i := range w.within {
		w.within[i] = make([]int, groups)
	}
	return w
}

// compare runs all rules on the fleet of one run.
func (w *world) compare(f *fleet, run int, out [][]outcome) error {
	f.build(w.cfg, w.cells, w.ids, uint64(run))
	for _, group := range together(w.cfg.Rules) {
		var names []string
		for _, i := range group {
			names = append(names, w.cfg.Rules[i])
		}
		if err := w.start(f, names...); err != nil {
			return err
		}
		for k, o := range w.run() {
			out[group[k]][run] = o
		}
	}
	return nil
}

// row sums the outcomes up.
func row(c *Config, name string, harmful, harmless []outcome) Row {
	r := Row{Rule: name, Runs: len(harmful), HealthyRuns: len(harmless)}
	var hurts, killed, halts, fulls []float64
	early := 0
	for _, o := range harmful {
		hurts, killed = append(hurts, float64(o.got)), append(killed, float64(o.killed))
		if !o.halted {
			continue
		}
		halts, r.hurts = append(halts, float64(o.at)/float64(hours(1))), append(r.hurts, float64(o.got))
		if o.state != rollout.General {
			early++
		}
	}
	for _, o := range harmless {
		if o.halted {
			r.FalseHalts++
		}
		if o.full >= 0 {
			fulls = append(fulls, float64(o.full)/float64(hours(1)))
		}
	}
	slices.Sort(r.hurts)
	n := float64(len(harmful))
	r.HaltedShare, r.BeforeGeneral = float64(len(halts))/n, float64(early)/n
	r.HurtMedian, r.HurtP95 = quantile(hurts, 0.5), quantile(hurts, 0.95)
	r.KilledMedian, r.KilledP95 = quantile(killed, 0.5), quantile(killed, 0.95)
	r.HoursToHalt, r.HoursToFull = median(halts), median(fulls)
	if c.Lethal > 0 {
		share := c.Lethal * shareOf(c.Stratum)
		bound := WaldBound(c.Background, share+c.Background, w0(c))
		r.WaldBound = &bound
	}
	return r
}

// w0 is the false-halt rate that the bound is computed for.
func w0(c *Config) float64 { return rollout.NewJudge(c.Policy.Judge).Settings.FalseHalts }

// shareOf is the share of the fleet that is in the slice; 1 for "".
func shareOf(slice string) float64 {
	cells, _ := cellsOf(slice)
	sum := 0.0
	for _, c := range cells {
		if c.hit {
			sum += c.share
		}
	}
	return sum
}

// quantile is the smallest value with at least the share q of values at or below.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := int(q*float64(len(s))+0.9999999) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// median is nil for no values.
func median(values []float64) *float64 {
	if len(values) == 0 {
		return nil
	}
	m := quantile(values, 0.5)
	return &m
}
