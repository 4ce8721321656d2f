package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/cli"
)

func (p *program) machine() *cobra.Command {
	return group("machine", "List, show, place and remove enrolled machines",
		p.machineList(), p.machineShow(), p.machineTier(), p.machineRemove())
}

func (p *program) machineList() *cobra.Command {
	var f api.MachineFilter
	c := &cobra.Command{
		Use:   "list",
		Short: "List enrolled machines",
		Example: examples(`
livepatch-admin machine list --kernel 6.1.0-47-cloud-amd64`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("list machines", err)
			}
			machines, err := s.api.Machines(c.Context(), f)
			if err != nil {
				return cannot("list machines", err)
			}
			return p.print(machines, func() error {
				t := cli.NewTable("host", "id", "account", "kernel", "livepatch", "state", "last seen")
				for _, m := range machines {
					t.Row(m.Hostname, m.ID, m.Account, m.Kernel.Release, m.Version.String(), state(m), cli.Age(m.LastSeen, p.now()))
				}
				return t.Write(p.s)
			})
		},
	}
	c.Flags().StringVar(&f.Account, "account", "", "only machines of this `ACCOUNT`, by id or name")
	c.Flags().StringVar(&f.Kernel, "kernel", "", "only machines that run this kernel `RELEASE`")
	return c
}

// state says how a machine fares, the worst first.
func state(m api.Machine) string {
	if len(m.Suspects) > 0 {
		return string(m.PatchState) + ", suspects " + versions(m)
	}
	return string(m.PatchState)
}

func versions(m api.Machine) string {
	names := make([]string, len(m.Suspects))
	for i, v := range m.Suspects {
		names[i] = v.String()
	}
	return strings.Join(names, " ")
}

func (p *program) machineShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show MACHINE",
		Short:   "Show a machine, what runs on it and what it reported",
		Long:    "Show a machine, given by its id here, its own machine id or its host name.",
		Example: examples(`livepatch-admin machine show web1`),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("show machine", err)
			}
			m, err := s.api.Machine(c.Context(), args[0])
			if err != nil {
				return cannot("show machine", err)
			}
			return p.print(m, func() error { return p.writeMachine(m) })
		},
	}
}

func (p *program) writeMachine(m api.Machine) error {
	t := details()
	t.Row("machine", m.ID)
	for _, row := range [][2]string{
		{"host", m.Hostname},
		{"machine id", m.MachineID},
		{"account", m.Account},
		{"tier", string(m.Tier)},
		{"kernel", m.Kernel.Release + " " + m.Kernel.Version},
		{"build id", m.Kernel.BuildID},
		{"livepatch", m.Version.String()},
		{"state", state(m)},
		{"last check", string(m.CheckState)},
		{"problem", m.Problem},
		{"booted", cli.Time(m.BootTime)},
		{"enrolled", cli.Time(m.Enrolled)},
		{"last seen", cli.Age(m.LastSeen, p.now())},
		{"agent", m.AgentVersion},
	} {
		t.Row(row[0], row[1])
	}
	for _, l := range m.Loaded {
		t.Row("loaded", strings.TrimSpace(l.Module+" "+l.Version.String()))
	}
	if err := t.Write(p.s); err != nil || len(m.Reports) == 0 {
		return err
	}
	if err := p.s.Printf(""); err != nil {
		return err
	}
	reports := cli.NewTable("at", "report", "livepatch", "detail")
	for _, r := range m.Reports {
		said := slices.DeleteFunc([]string{strings.TrimSpace(r.Detail + " " + r.Signature), vitals(r.Vitals)}, func(s string) bool { return s == "" })
		reports.Row(cli.Time(r.At), string(r.Kind), r.Version.String(), strings.Join(said, "; "))
	}
	if err := reports.Write(p.s); err != nil {
		return err
	}
	for _, r := range m.Reports {
		if r.Evidence != "" {
			return p.s.Printf("\nEvidence of %s:\n%s", cli.Time(r.At), strings.TrimRight(r.Evidence, "\n"))
		}
	}
	return nil
}

func (p *program) machineRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "remove MACHINE",
		Short:   "Take a machine's credential away and free its seat",
		Long:    "Take a machine's credential away and free its seat. What is loaded on it stays loaded until it reboots.",
		Example: examples(`livepatch-admin machine remove web1`),
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := p.connect()
			if err != nil {
				return cannot("remove machine", err)
			}
			if err := s.api.RemoveMachine(c.Context(), args[0]); err != nil {
				return cannot("remove machine", err)
			}
			return p.print(map[string]string{"removed": args[0]}, func() error {
				return p.s.Printf("Removed machine %s. What is loaded on it stays until it reboots.", args[0])
			})
		},
	}
}

// vitals is what a report says of memory and load; empty when it says nothing.
func vitals(v *livepatch.Vitals) string {
	if v == nil || v.MemTotal == 0 {
		return ""
	}
	return fmt.Sprintf("%s of %s available, load %.2f", cli.Bytes(v.MemAvailable), cli.Bytes(v.MemTotal), v.Load1)
}
