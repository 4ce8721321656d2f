package agent

import (
	"cmp"
	"slices"
	"time"

	"livepatch"
	"livepatch/internal/localapi"
)

// area is a part of the work that can have one problem at a time.
type area string

// The areas, in the order in which their problems are shown.
const (
	areaMachine area = "1 machine"
	areaGuard   area = "2 guard"
	areaApply   area = "3 apply"
	areaHealth  area = "4 health"
	areaStream  area = "5 stream"
	areaCheckIn area = "6 check-in"
	areaClock   area = "7 clock"
	areaDisk    area = "8 disk"
	areaHeld    area = "9 held"
	areaState   area = "9 state"
)

// problems are what went wrong and is not mended yet, by area.
type problems map[area]localapi.Problem

// set replaces the area's problem; nil clears it. The same problem again keeps
// the time since when it is there.
func (ps *problems) set(a area, err error, now time.Time) (changed bool) {
	old, was := (*ps)[a]
	if err == nil {
		delete(*ps, a)
		return was
	}
	if was && old.Message == err.Error() {
		return false
	}
	if *ps == nil {
		*ps = problems{}
	}
	(*ps)[a] = localapi.Problem{Code: livepatch.CodeOf(err), Message: err.Error(), Since: now.UTC()}
	return true
}

func (ps problems) list() []localapi.Problem {
	areas := make([]area, 0, len(ps))
	for a := range ps {
		areas = append(areas, a)
	}
	slices.SortFunc(areas, cmp.Compare[area])
	list := []localapi.Problem{}
	for _, a := range areas {
		list = append(list, ps[a])
	}
	return list
}

// note records the outcome of work in an area, and logs it when it changed.
func (a *Agent) note(where area, err error) (changed bool) {
	if !a.problems.set(where, err, time.Now()) {
		return false
	}
	if err != nil {
		a.o.Log.Warn("problem", "area", string(where[2:]), "code", livepatch.CodeOf(err), "err", err)
	} else {
		a.o.Log.Info("solved", "area", string(where[2:]))
	}
	return true
}
