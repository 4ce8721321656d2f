package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"livepatch"
)

// nextName is what to do when the kernel's catalogue cannot take the module as it is.
const nextName = "build it again under the next module name (livepatch-admin build --name) and publish that"

// again answers that this very module is in the catalogue as was. What is published
// does not change: it is an error to ask for that. Otherwise the files are sent once
// more, for a server that has lost them or whose disk has damaged them.
func (w *publishing) again(ctx context.Context, cat livepatch.Catalogue, was livepatch.Livepatch) error {
	if was.Withdrawn != nil {
		return livepatch.Errorf(livepatch.CodeConflict, "this very module was published as livepatch %s of %s and withdrawn (%s), and machines load it no more: %s",
			was.Version, w.kernel.Release, was.Withdrawn.Reason, nextName)
	}
	if differs := w.differences(cat, was); len(differs) > 0 {
		return livepatch.Errorf(livepatch.CodeConflict, "this very module is published as livepatch %s of %s already, and what is published does not change: %s. To say otherwise %s",
			was.Version, w.kernel.Release, strings.Join(differs, "; "), nextName)
	}
	if !w.flags.dryRun && w.lp.Archive.SHA256 == was.Archive.SHA256 {
		if err := w.upload(ctx); err != nil {
			return err
		}
	}
	w.lp, w.already = was, true
	return errStop
}

// differences says what was asked for otherwise than it is published.
func (w *publishing) differences(cat livepatch.Catalogue, was livepatch.Livepatch) []string {
	var found []string
	differ := func(what, now, before string) {
		found = append(found, fmt.Sprintf("%s %s asked for, %s published", what, now, before))
	}
	if !w.sameFixes(cat, was) {
		differ("fixes", fixList(w.lp.Fixes), fixList(was.Fixes))
	}
	if !slices.Equal(w.lp.BuildIDs, was.BuildIDs) {
		differ("build ids", strings.Join(w.lp.BuildIDs, ", "), strings.Join(was.BuildIDs, ", "))
	}
	if v := w.flags.version; v != "" && v != was.Version.String() {
		differ("version", v, was.Version.String())
	}
	if w.source != nil && w.lp.Source.SHA256 != was.Source.SHA256 {
		found = append(found, "the sources are not those that are published")
	}
	return found
}

// sameFixes tells whether the fixes asked for are the published ones. Those of
// earlier versions, which place adds to a module that stacks on them, may be left out.
func (w *publishing) sameFixes(cat livepatch.Catalogue, was livepatch.Livepatch) bool {
	inherited := func(f livepatch.Fix) bool {
		return !was.Module.Replace && slices.ContainsFunc(cat.Patches, func(p livepatch.Livepatch) bool {
			return p.Version.Compare(was.Version) < 0 && slices.Contains(p.Fixes, f)
		})
	}
	for _, f := range was.Fixes {
		if !slices.Contains(w.lp.Fixes, f) && !inherited(f) {
			return false
		}
	}
	return !slices.ContainsFunc(w.lp.Fixes, func(f livepatch.Fix) bool { return !slices.Contains(was.Fixes, f) })
}
