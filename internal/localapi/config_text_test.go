package localapi_test

import (
	"encoding/json"
	"regexp"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"livepatch/internal/localapi"
)

// TestConfigAnyValue: whatever a value is, it is one line that the reader's regular
// expression matches, and YAML and JSON both read it back.
func TestConfigAnyValue(t *testing.T) {
	t.Parallel()
	line := regexp.MustCompile(`(?m)^key: (.*)$`)
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ -~\n]{0,30}`), rapid.SampledFrom([]string{
			"", "0", "12s", "true", "null", "~", "2024-02-01T00:00:00Z", "a: b", "a #b", "- a", "@stdin", "-----BEGIN\nx\n", "http://proxy:1",
		})).Draw(t, "value")
		c := localapi.Config{Settings: []localapi.Setting{{Key: "key", Value: value, Kind: localapi.KindString}}}
		text := localapi.ConfigYAML(c)
		if len(line.FindAllString(text, -1)) != 1 || regexp.MustCompile(`\n.`).MatchString(text) {
			t.Fatalf("%q is not one line", text)
		}
		var y, j map[string]any
		if err := yaml.Unmarshal([]byte(text), &y); err != nil || y["key"] != value {
			t.Fatalf("YAML %q reads back as %q, %v", text, y["key"], err)
		}
		if err := json.Unmarshal([]byte(localapi.ConfigJSON(c, false)), &j); err != nil || j["key"] != value {
			t.Fatalf("JSON reads back as %q, %v", j["key"], err)
		}
	})
}
