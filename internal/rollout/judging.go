package rollout

// Judging sets the test that halts a rollout. The zero value is completed from
// DefaultJudging.
type Judging struct {
	// FalseHalts bounds the chance that a harmless patch is ever halted, over the
	// whole life of its rollout: 0.0001 is one in 10,000.
	FalseHalts float64 `json:"false_halts" yaml:"false_halts"`
}

// DefaultJudging is the test that DefaultPolicy uses.
func DefaultJudging() Judging { return Judging{FalseHalts: 1e-4} }

// Validate says what is wrong with the settings.
func (j Judging) Validate() error {
	if j.FalseHalts != 0 && !(j.FalseHalts > 0 && j.FalseHalts <= 0.1) {
		return invalid("false_halts %g is not a chance above 0 and at most 0.1", j.FalseHalts)
	}
	return nil
}
