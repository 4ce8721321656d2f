package server

import (
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/rollout"
	"livepatch/internal/store"
)

// inside is the rollout with its draw key, which the API keeps to itself.
func (f *fleet) inside() (r rollout.Rollout) {
	f.t.Helper()
	_, err := f.Store.JudgeRollout(f.t.Context(), f.only().ID, func(e store.Evidence) store.Judgement {
		r = e.Rollout
		return store.Judgement{Rollout: e.Rollout, Judge: e.Judge, Progress: f.only().Progress}
	})
	must(f.t, err)
	return r
}

// TestOnlyDrawnMachinesAreGranted: whatever happens to the canaries, nobody else
// gets the patch, and a later halt does not change who was drawn.
func TestOnlyDrawnMachinesAreGranted(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 50, 5)
	f.publish(t, kernel, "one")
	r := f.inside()
	f.used = func(m *fake) {
		if !rollout.Drawn(rollout.Machine{ID: m.id, Plan: m.plan}, &r) {
			t.Errorf("machine %s of plan %s was granted the patch and is not drawn", m.id, m.plan)
		}
		f.crash(m, "rip:tcp_ack+0x1b")
	}
	f.run(60, f.halted)
	if !f.halted() {
		t.Fatalf("the rollout is %s", f.only().State)
	}
	granted := f.granted()
	if _, err := f.operator.Operate(t.Context(), r.ID, "resume", "look again"); err != nil {
		t.Fatal(err)
	}
	if a := f.only().Assessment; a.Evidence != 1 {
		t.Errorf("an operator overruled the judge, who still holds %g", a.Evidence)
	}
	f.run(20, f.halted)
	if f.granted() <= granted {
		t.Error("after the resume nobody else was granted the patch")
	}
}

// now is when the weighing in these tests takes place.
func now() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

// evidence is of a rollout in canary with these machines, of which the first was
// granted the patch.
func evidence(silentFor ...time.Duration) (store.Evidence, func(store.Member) contact) {
	p := quickly()
	r, err := rollout.New("r", kernel.Target(), livepatch.Version{Major: 1, Minor: 1}, p, make([]byte, rollout.KeySize))
	if err == nil {
		r, _, err = rollout.Operate(r, "start", "ann", "", now().Add(-24*time.Hour))
	}
	if err != nil {
		panic(err)
	}
	e := store.Evidence{Now: now(), Started: now().Add(-24 * time.Hour), Rollout: r, Judge: rollout.NewJudge(p.Judge), Weighed: map[store.Weighed]bool{}}
	for i, d := range silentFor {
		m := store.Member{Machine: rollout.Machine{ID: strings.Repeat("m", i+1), Plan: "community"}, LastSeen: now().Add(-d)}
		m.Kernel.Release = kernel.Release
		if i == 0 {
			m.Trial = &store.Trial{Granted: m.LastSeen}
		}
		e.Fleet = append(e.Fleet, m)
	}
	return e, func(m store.Member) contact { return contact{at: m.LastSeen, until: m.LastSeen.Add(time.Hour)} }
}

func TestSilenceIsWeighedOnceAndFromBothGroups(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		silentFor []time.Duration
		patched   int
		others    int
	}{
		{"all are there", []time.Duration{0, 0, 0}, 0, 0},
		{"the one with the grant is silent", []time.Duration{2 * time.Hour, 0, 0}, 1, 0},
		{"one without is silent", []time.Duration{0, 2 * time.Hour, 0}, 0, 1},
		{"silent since before the rollout", []time.Duration{0, 48 * time.Hour, 0}, 0, 0},
	} {
		e, heard := evidence(tt.silentFor...)
		j := weigh(e, heard)
		events, patched := 0, 0
		for _, test := range j.Judge.Tests {
			if test.Kind == rollout.Silence && test.Slice == "" {
				events = test.Events
				patched = test.Patched[0]
			}
		}
		if patched != tt.patched || events-patched != tt.others {
			t.Errorf("%s: %d patched of %d silent machines, want %d and %d others", tt.name, patched, events, tt.patched, tt.others)
		}
		before := j.Judge.Evidence()
		if again := weigh(e, heard); again.Judge.Evidence() != before || len(again.Weighed) != 0 {
			t.Errorf("%s: weighed again", tt.name)
		}
	}
}

func TestEmptyStagesArePassed(t *testing.T) {
	t.Parallel()
	e, heard := evidence(0)
	e.Fleet[0].Plan, e.Fleet[0].Trial = "standard", nil
	j := weigh(e, heard)
	if j.Rollout.State != rollout.General || len(j.Changes) != 2 || j.Changes[0].Actor != rollout.ActorJudge {
		t.Errorf("with paid machines only the rollout is %s after %+v", j.Rollout.State, j.Changes)
	}
	e, heard = evidence()
	if j := weigh(e, heard); j.Rollout.Stage != 0 {
		t.Errorf("without any machine the rollout went on to stage %d: those that come would get it all at once", j.Rollout.Stage)
	}
	e, heard = evidence(0)
	e.Fleet[0].Plan, e.Fleet[0].Trial = "standard", nil
	e.Rollout.Paused = true
	if j := weigh(e, heard); len(j.Changes) != 0 {
		t.Errorf("paused, the rollout went on: %+v", j.Changes)
	}
}

// TestTimePassesWhileJudging: machines that hold an event stream are online and not
// silent, also by a clock that is read a moment after the hub was asked.
func TestTimePassesWhileJudging(t *testing.T) {
	t.Parallel()
	f := newServerAt(t, now, nil)
	e, _ := evidence(0, 0, 0, 0)
	for _, m := range e.Fleet {
		sub := f.hub.subscribe(m.ID, kernel.Target())
		defer f.hub.unsubscribe(m.ID, sub)
	}
	e.Fleet[0].Trial.Loaded = now().Add(-time.Minute)
	e.News = []store.News{{Machine: "m", Plan: "community", Version: e.Rollout.Version, Kind: livepatch.ReportOopsed,
		Received: now().Add(time.Second), Trial: e.Fleet[0].Trial}}
	e.Now = now().Add(2 * time.Second)
	got := weigh(e, func(m store.Member) contact { return f.heardOf(m, now()) })
	for _, w := range got.Weighed {
		if w.Kind == rollout.Silence {
			t.Errorf("machine %s is connected and counts as silent", w.Machine)
		}
	}
	if tests := got.Judge.Tests; len(tests) == 0 || tests[0].Expected[0] != 0.25 {
		t.Errorf("one of four machines at risk has the patch; the tests are %+v", tests)
	}
}
