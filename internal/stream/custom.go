package stream

import (
	"encoding/json"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// custom is the signed custom metadata of a target: it repeats the kernel, so that
// other TUF clients can tell targets apart without opening them.
func setCustom(target *metadata.TargetFiles, k livepatch.KernelTarget) error {
	b, err := json.Marshal(k)
	if err != nil {
		return fmt.Errorf("encode custom metadata: %w", err)
	}
	target.Custom = (*json.RawMessage)(&b)
	return nil
}

// checkCustom makes sure that a target's custom metadata names kernel k.
func checkCustom(target *metadata.TargetFiles, k livepatch.KernelTarget) error {
	var named livepatch.KernelTarget
	if target.Custom == nil || json.Unmarshal(*target.Custom, &named) != nil || named != k {
		return livepatch.Errorf(livepatch.CodeWrongKernel, "the target of kernel %s does not name that kernel in its signed metadata", k)
	}
	return nil
}
