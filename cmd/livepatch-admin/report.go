package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"livepatch/internal/api"
	"livepatch/internal/cli"
)

func (p *program) report() *cobra.Command {
	return group("report", "Show what machines reported", p.reportPatchHealth())
}

func (p *program) reportPatchHealth() *cobra.Command {
	var f kernelFlags
	c := &cobra.Command{
		Use:     "patch-health RELEASE VERSION",
		Short:   "Show how the machines fare that were given a livepatch",
		Example: examples(`livepatch-admin report patch-health 6.1.0-47-cloud-amd64 3.1`),
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			k, v, err := f.parse(c, args)
			if err != nil {
				return err
			}
			s, err := p.connect()
			if err != nil {
				return cannot("report on livepatch", err)
			}
			h, err := s.api.PatchHealth(c.Context(), k, v)
			if err != nil {
				return cannot("report on livepatch", err)
			}
			return p.print(h, func() error { return p.writeHealth(h) })
		},
	}
	f.add(c)
	return c
}

func (p *program) writeHealth(h api.PatchHealth) error {
	t := details()
	t.Row("livepatch", h.Version.String()+" of "+h.Kernel.String())
	if h.Rollout != nil {
		t.Row("rollout", h.Rollout.ID+", "+rolloutState(*h.Rollout))
	}
	for _, outcome := range slices.Sorted(maps.Keys(h.Machines)) {
		t.Row(outcome, cli.Count(h.Machines[outcome], "machine"))
	}
	for _, kind := range slices.Sorted(maps.Keys(h.Reports)) {
		t.Row("said "+string(kind), cli.Count(h.Reports[kind], "report"))
	}
	for _, m := range h.NeedReboot {
		t.Row("withdrawn, still runs on", m+"; it unloads when it checks in, or needs a reboot")
	}
	if err := t.Write(p.s); err != nil {
		return err
	}
	if len(h.Signatures) > 0 {
		sig := cli.NewTable("signature", "machines")
		for _, s := range h.Signatures {
			sig.Row(s.Signature, strconv.Itoa(s.Machines))
		}
		if err := p.s.Printf(""); err != nil {
			return err
		}
		if err := sig.Write(p.s); err != nil {
			return err
		}
	}
	if h.Rollout == nil || h.Rollout.Assessment == nil {
		return nil
	}
	if err := p.writeEvidence(h.Rollout.Assessment); err != nil {
		return fmt.Errorf("write evidence: %w", err)
	}
	return nil
}
