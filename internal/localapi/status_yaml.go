package localapi

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// YAML is the status as the Canonical client writes it, for the programs that read
// it: last-check and boot-time are YAML timestamps, uptime is a Go duration,
// version is quoted, fixes is one block of text. The keys after tier are ours.
func YAML(s Status) ([]byte, error) {
	doc := mapping(
		"client-version", text(s.ClientVersion),
		"machine-id", text(s.MachineID),
		"architecture", text(s.Architecture),
		"cpu-model", text(s.CPUModel),
		"last-check", timestamp(s.LastCheck),
		"boot-time", timestamp(s.BootTime),
		"uptime", text(uptime(s.Uptime)),
	)
	if len(s.Status) > 0 {
		kernels := list()
		for _, k := range s.Status {
			kernels.Content = append(kernels.Content, kernelYAML(k))
		}
		add(doc, "status", kernels)
	}
	add(doc, "tier", text(string(s.Tier)))
	add(doc, "server-check-in", text(checkIn(s)))
	add(doc, "trusted", text(s.Trusted))
	outstanding := list()
	for _, f := range s.Outstanding {
		outstanding.Content = append(outstanding.Content, text(strings.ToUpper(f.Name)))
	}
	add(doc, "outstanding", outstanding)
	problems := list()
	for _, p := range s.Problems {
		problems.Content = append(problems.Content, mapping(
			"code", text(string(p.Code)),
			"message", text(strings.Join(strings.Fields(p.Message), " ")),
			"since", timestamp(p.Since),
		))
	}
	add(doc, "problems", problems)

	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	e.CompactSeqIndent()
	if err := e.Encode(doc); err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	return b.Bytes(), e.Close()
}

func kernelYAML(k KernelStatus) *yaml.Node {
	version := text(k.Livepatch.Version.String())
	version.Style = yaml.DoubleQuotedStyle
	patch := mapping(
		"checkState", text(string(k.Livepatch.CheckState)),
		"patchState", text(string(k.Livepatch.State)),
		"version", version,
	)
	if len(k.Livepatch.Fixes) > 0 {
		fixes := text(fixesBlock(k.Livepatch.Fixes))
		fixes.Style = yaml.LiteralStyle
		add(patch, "fixes", fixes)
	}
	node := mapping(
		"kernel", text(k.Kernel),
		"running", scalar("!!bool", strconv.FormatBool(k.Running)),
		"livepatch", patch,
		"supported", text(string(k.Supported)),
	)
	if k.UpgradeRequiredDate != "" {
		add(node, "upgradeRequiredDate", text(k.UpgradeRequiredDate))
	}
	return node
}

// fixesBlock is one line for each fix, in the form that update-manager reads.
func fixesBlock(fixes []Fix) string {
	lines := make([]string, len(fixes))
	for i, f := range fixes {
		lines[i] = "* " + strings.ToUpper(f.Name)
		if f.Bug != "" {
			lines[i] += " LP: #" + f.Bug
		}
		lines[i] += unpatched(f)
	}
	return strings.Join(lines, "\n")
}

func unpatched(f Fix) string {
	if f.Patched {
		return ""
	}
	return " (unpatched)"
}

// uptime turns seconds into a Go duration, "19h19m56s".
func uptime(seconds string) string {
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return seconds
	}
	return (time.Duration(n) * time.Second).String()
}

func mapping(keysAndValues ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(keysAndValues); i += 2 {
		add(m, keysAndValues[i].(string), keysAndValues[i+1].(*yaml.Node))
	}
	return m
}

func add(m *yaml.Node, key string, value *yaml.Node) {
	m.Content = append(m.Content, text(key), value)
}

func list() *yaml.Node { return &yaml.Node{Kind: yaml.SequenceNode} }

// text is a string; the encoder quotes it where it would be read as something
// else.
func text(s string) *yaml.Node { return scalar("!!str", s) }

// timestamp is not quoted, so that readers get a time and not a string.
func timestamp(t time.Time) *yaml.Node {
	return scalar("!!timestamp", t.Format(time.RFC3339))
}

func scalar(tag, value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value}
}
