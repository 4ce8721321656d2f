package sim

import (
	"fmt"
	"testing"
)

func TestTrace(t *testing.T) {
	c := Default()
	c.Lethal = 0.05
	c.Seed = 7
	c.Validate()
	ids := names(c.Machines)
	w, f := newWorld(&c, ids), &fleet{}
	for run := range 6 {
		f.build(&c, w.cells, ids, uint64(run))
		w.start(f, "livepatch")
		trace = func(e any) { fmt.Println(run, e) }
		o := w.run()
		fmt.Printf("%+v caution %v\n", o, w.rollout.CautionSince)
	}
}
