package localapi

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// ConfigYAML writes one "key: value" line for each setting, at column 0 and with
// one blank after the colon, whatever the value: programs read it with a regular
// expression for one line.
func ConfigYAML(c Config) string {
	var b strings.Builder
	for _, s := range c.Settings {
		b.WriteString(s.Key + ": " + yamlValue(s))
		if s.Unit != "" {
			b.WriteString("  # " + s.Unit)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// yamlValue is the value as it is where YAML reads it back as the same string, else
// in double quotes, where JSON's strings are YAML's.
func yamlValue(s Setting) string {
	if s.Kind != KindString {
		return s.Value
	}
	var back any
	plain := !strings.ContainsAny(s.Value, "\n\r\t#") && !strings.HasPrefix(s.Value, " ") && !strings.HasSuffix(s.Value, " ")
	if plain && yaml.Unmarshal([]byte("k: "+s.Value), &back) == nil {
		if m, ok := back.(map[string]any); ok && m["k"] == any(s.Value) {
			return s.Value
		}
	}
	return jsonString(s.Value)
}

// ConfigJSON writes one object with a member for each setting, in order; on lines
// of their own when indent is set, else in one line with a blank after colons.
func ConfigJSON(c Config, indent bool) string {
	members := make([]string, len(c.Settings))
	for i, s := range c.Settings {
		value := s.Value
		if s.Kind == KindString || value == "" {
			value = jsonString(value)
		}
		members[i] = jsonString(s.Key) + ": " + value
	}
	if indent {
		return "{\n  " + strings.Join(members, ",\n  ") + "\n}"
	}
	return "{" + strings.Join(members, ", ") + "}"
}

func jsonString(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return `""` // a string always encodes
	}
	var safe strings.Builder
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		if r >= 0x7f && r <= 0xffff && !unicode.IsPrint(r) {
			fmt.Fprintf(&safe, `\u%04x`, r) // JSON allows it bare, YAML does not
			continue
		}
		safe.WriteRune(r)
	}
	return safe.String()
}
