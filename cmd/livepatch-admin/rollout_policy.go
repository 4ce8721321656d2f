package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/rollout"
)

func (p *program) rolloutPolicy() *cobra.Command {
	return &cobra.Command{
		Use:   "policy [FILE]",
		Short: "Check a rollout policy, or show the built-in one",
		Long: `Check the policy in FILE and show it as the server reads it, defaults filled in. Without FILE, show the
built-in policy: a good beginning for one of your own.`,
		Example: examples(`
livepatch-admin rollout policy > careful.yaml
livepatch-admin rollout policy careful.yaml
livepatch-admin rollout simulate --policy careful.yaml --lethal 0.05`),
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			policy := rollout.DefaultPolicy()
			if len(args) == 1 {
				var err error
				if policy, err = readPolicy(args[0]); err != nil {
					return cannot("use policy", err)
				}
			}
			return p.print(policy, func() error {
				text, err := policy.YAML()
				if err != nil {
					return cannot("write policy", err)
				}
				return p.s.Printf("%s", text)
			})
		},
	}
}

// readPolicy reads and checks a policy file.
func readPolicy(path string) (rollout.Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return rollout.Policy{}, livepatch.Errorf(livepatch.CodeInvalid, "policy file is not readable: %w", err)
	}
	policy, err := rollout.ParsePolicy(data)
	if err != nil {
		return rollout.Policy{}, fmt.Errorf("%s: %w", path, err)
	}
	return policy, nil
}
