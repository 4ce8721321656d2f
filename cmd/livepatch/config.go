package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/cli"
	"livepatch/internal/localapi"
)

// maxValue bounds a value that is read from standard input, in bytes; a bundle of
// certificates has some hundred KB.
const maxValue = 4 << 20

func (p *program) config() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "config [KEY | KEY=VALUE...]",
		Short: "Read or change the daemon's settings",
		Long: `Read or change the daemon's settings. Without arguments all are printed, with a
key that one. With KEY=VALUE they are changed, all or none; an empty value puts
a key back to its default, and KEY=@stdin reads the value from standard input.
Changes take effect at once; only root may make them.`,
		Example: p.examples(`
# All settings
%[1]s config

# One of them, for a program
%[1]s config remote-server --format json

# Another server with its own certificate authority, both or none
sudo %[1]s config remote-server=https://livepatch.example.com \
    ca-certs=@stdin < ca.crt

# Back to the default
sudo %[1]s config http-proxy=`),
		RunE: func(c *cobra.Command, args []string) error {
			if format != "yaml" && format != "json" {
				return cli.Usagef(c, "unknown format %q: choose json or yaml", format)
			}
			return p.runConfig(c, args, format)
		},
		ValidArgsFunction: p.completeKeys,
	}
	c.Flags().StringVar(&format, "format", "yaml", "json or yaml")
	formats(c, "json", "yaml")
	return c
}

func (p *program) runConfig(c *cobra.Command, args []string, format string) error {
	changes := slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "=") })
	if changes {
		return p.setConfig(c, args, format)
	}
	if len(args) > 1 {
		return cli.Usagef(c, "one key can be read at a time; to change settings write KEY=VALUE")
	}
	cfg, err := p.daemon.Config(c.Context())
	if err != nil {
		return p.failed("read the settings", "config", err)
	}
	if len(args) == 0 {
		return p.printConfig(cfg, format, false)
	}
	one, err := pick(cfg, args)
	if err != nil {
		return err
	}
	return p.printConfig(one, format, true)
}

// setConfig changes all the settings that args name, or none.
func (p *program) setConfig(c *cobra.Command, args []string, format string) error {
	values := map[string]string{}
	stdin := ""
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		switch _, twice := values[key]; {
		case !ok || key == "":
			return cli.Usagef(c, "%q is not of the form KEY=VALUE; nothing was changed", arg)
		case twice:
			return cli.Usagef(c, "%s is given twice; nothing was changed", key)
		case value == "@stdin" && stdin != "":
			return cli.Usagef(c, "%s and %s cannot both be read from standard input; nothing was changed", stdin, key)
		case value == "@stdin":
			stdin = key
			b, err := io.ReadAll(io.LimitReader(p.s.In, maxValue+1))
			if err != nil || len(b) > maxValue {
				return cli.Usagef(c, "standard input for %s is unreadable or over %s; nothing was changed", key, cli.Bytes(maxValue))
			}
			value = string(b)
		}
		values[key] = value
	}
	progress := p.s.Progress("waiting for livepatchd")
	cfg, err := p.daemon.SetConfig(c.Context(), values)
	progress.Stop()
	switch livepatch.CodeOf(err) {
	case "":
	case livepatch.CodeNotPrivileged, livepatch.CodeUnavailable:
		return p.failed("change the settings", "config KEY=VALUE", err)
	default:
		return &livepatch.Error{Code: livepatch.CodeOf(err), Message: "config update aborted: " + err.Error(), Err: err}
	}
	changed, err := pick(cfg, slices.Sorted(maps.Keys(values)))
	if err != nil {
		return err
	}
	return p.printConfig(changed, format, len(values) == 1)
}

// pick keeps the settings with these keys, in the order of cfg.
func pick(cfg localapi.Config, keys []string) (localapi.Config, error) {
	var known []string
	var picked localapi.Config
	for _, s := range cfg.Settings {
		known = append(known, s.Key)
		if slices.Contains(keys, s.Key) {
			picked.Settings = append(picked.Settings, s)
		}
	}
	for _, k := range keys {
		if !slices.Contains(known, k) {
			return picked, livepatch.Errorf(livepatch.CodeInvalid, "unknown setting %q: choose one of %s", k, strings.Join(known, ", "))
		}
	}
	return picked, nil
}

// printConfig writes settings; one of them alone is one line in JSON too.
func (p *program) printConfig(cfg localapi.Config, format string, one bool) error {
	if format == "json" {
		return p.s.Printf("%s", localapi.ConfigJSON(cfg, !one))
	}
	_, err := io.WriteString(p.s.Out, localapi.ConfigYAML(cfg))
	return err
}

// completeKeys completes the names of settings, if the daemon tells them.
func (p *program) completeKeys(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), motdPatience)
	defer cancel()
	cfg, err := p.daemon.Config(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var keys []string
	for _, s := range cfg.Settings {
		keys = append(keys, s.Key)
	}
	return keys, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
