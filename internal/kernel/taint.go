package kernel

import (
	"strconv"
	"strings"
)

// Taint is the kernel's taint mask, /proc/sys/kernel/tainted
// (Documentation/admin-guide/tainted-kernels.rst).
type Taint uint64

// The bits that mean something here. TaintLivepatch and, for a module the kernel
// knows no key of, TaintUnsigned are set by a livepatch as such; TaintOutOfTree by
// every module built outside the kernel's tree.
const (
	TaintMachineCheck Taint = 1 << 4
	TaintDied         Taint = 1 << 7
	TaintWarned       Taint = 1 << 9
	TaintOutOfTree    Taint = 1 << 12
	TaintUnsigned     Taint = 1 << 13
	TaintSoftLockup   Taint = 1 << 14
	TaintLivepatch    Taint = 1 << 15
)

// TaintTrouble are the bits that say something went wrong in the kernel.
const TaintTrouble = TaintMachineCheck | TaintDied | TaintWarned | TaintSoftLockup

// taintLetters are the kernel's letters from bit 0 up (kernel/panic.c,
// taint_flags).
const taintLetters = "PFSRMBUDAWCIOELKXTNJ"

// String is the letters the kernel prints, "OEK"; bits it has learnt since are
// written as "+20". Empty for an untainted kernel.
func (t Taint) String() string {
	var b strings.Builder
	for bit := range 64 {
		switch {
		case t>>bit&1 == 0:
		case bit < len(taintLetters):
			b.WriteByte(taintLetters[bit])
		default:
			b.WriteString("+" + strconv.Itoa(bit))
		}
	}
	return b.String()
}

// Gained are the bits of t that before does not have.
func (t Taint) Gained(before Taint) Taint { return t &^ before }

// Taint reads the mask; 0 when it cannot be read.
func (s *System) Taint() Taint {
	n, err := strconv.ParseUint(s.line("proc/sys/kernel/tainted"), 10, 64)
	if err != nil {
		return 0
	}
	return Taint(n)
}
