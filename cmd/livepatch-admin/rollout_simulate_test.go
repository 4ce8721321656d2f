package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livepatch/internal/rollout"
)

// simulate runs `rollout simulate` on a small fleet.
func simulate(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	args = append([]string{"rollout", "simulate", "--machines", "500", "--runs", "3", "--seed", "7"}, args...)
	code = run(t.Context(), args, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

func TestRolloutSimulate(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := simulate(t, "--lethal", "0.2", "--json")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var rows []map[string]any
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	rules := map[any]bool{}
	for _, row := range rows {
		rules[row["rule"]] = true
		for _, key := range []string{"rule", "halted_share", "hurt_median", "hurt_p95", "hours_to_full", "false_halts", "wald_bound"} {
			if _, ok := row[key]; !ok {
				t.Errorf("%v has no %s", row, key)
			}
		}
	}
	for _, want := range []string{"livepatch", "hawkbit-1", "hawkbit-10", "lvfs", "nebraska", "sprt"} {
		if !rules[want] {
			t.Errorf("rule %s is not in %s", want, stdout)
		}
	}
	if _, table, _ := simulate(t, "--lethal", "0.2", "--rules", "livepatch"); !strings.Contains(table, "HURT MEDIAN") || !strings.Contains(table, "Wald's bound") {
		t.Errorf("the table is\n%s", table)
	}
}

func TestRolloutSimulateFiles(t *testing.T) {
	t.Parallel()
	policy, err := rollout.Everybody().YAML()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	policyFile, plotFile := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "plot.svg")
	if err := os.WriteFile(policyFile, policy, 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := simulate(t, "--lethal", "0.2", "--rules", "livepatch", "--policy", policyFile, "--plot", plotFile); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if svg, err := os.ReadFile(plotFile); err != nil || !bytes.HasPrefix(svg, []byte("<svg")) {
		t.Errorf("the plot is %.20q, %v", svg, err)
	}
	if err := os.WriteFile(policyFile, append(policy, "tier: canary\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := simulate(t, "--policy", policyFile); code == 0 || !strings.Contains(stderr, "tier") {
		t.Errorf("a policy with an unknown field: exit code %d, %s", code, stderr)
	}
}

func TestRolloutSimulateRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ flag, value, says string }{
		{"--lethal", "2", "outside 0 to 1"},
		{"--rules", "coin", "hawkbit-1"},
		{"--stratum", "hardware=h99", "hardware=h8"},
		{"--policy", "/nonexistent", "not readable"},
	} {
		code, stdout, stderr := simulate(t, tt.flag, tt.value)
		if code == 0 || stdout != "" || !strings.Contains(stderr, tt.says) {
			t.Errorf("%s %s: exit code %d, %q, want one that says %q", tt.flag, tt.value, code, stderr, tt.says)
		}
	}
}

// TestRolloutPolicy: what the command shows it takes again.
func TestRolloutPolicy(t *testing.T) {
	t.Parallel()
	policy := func(args ...string) (code int, stdout, stderr string) {
		var out, err bytes.Buffer
		code = run(t.Context(), append([]string{"rollout", "policy"}, args...), strings.NewReader(""), &out, &err)
		return code, out.String(), err.String()
	}
	_, builtIn, _ := policy()
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(builtIn), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, again, stderr := policy(file); code != 0 || again != builtIn || !strings.Contains(again, "tier: canary") {
		t.Errorf("exit code %d, %s\n%s", code, stderr, again)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(builtIn, "share: 100", "share: 99", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := policy(file); code == 0 || !strings.Contains(stderr, "last stage") {
		t.Errorf("a policy that never reaches everybody: exit code %d, %s", code, stderr)
	}
}
