package rollout

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// KeySize is the length of a rollout's draw key in bytes.
const KeySize = 32

// Draw is a machine's place in a rollout's random order: uniform in [0, 100), a
// percentage. A machine is drawn into a stage when its Draw is below the stage's
// share, so a machine drawn at 1 % stays drawn at 5 %.
//
// It is HMAC-SHA-256 of "ROLLOUT/MACHINE" under the rollout's key: the first 53
// bits, times 100 / 2^53. Without the key nobody can choose a machine's place; with
// the key, which is published when the rollout ends, anybody can check it.
func Draw(key []byte, rollout, machine string) float64 {
	d := NewDrawer(key, rollout)
	return d.Draw(machine)
}

// Commitment is the SHA-256 of the rollout's key in hex. Written down when the
// rollout starts, it proves afterwards that the key was not chosen to suit.
func (r *Rollout) Commitment() string {
	sum := sha256.Sum256(r.Key)
	return hex.EncodeToString(sum[:])
}

// Public is r as anybody may see it: with the key only once nobody can gain by
// knowing it, when everybody is drawn or the patch withdrawn.
func (r Rollout) Public() Rollout {
	if r.State != General && r.State != Withdrawn {
		r.Key = nil
	}
	return r
}

// Drawer draws many machines of one rollout faster than Draw. It is not safe for
// concurrent use.
type Drawer struct {
	mac    hash.Hash
	prefix []byte
	buf    []byte
	sum    [sha256.Size]byte
}

// NewDrawer returns the Drawer of one rollout.
func NewDrawer(key []byte, rollout string) *Drawer {
	return &Drawer{mac: hmac.New(sha256.New, key), prefix: []byte(rollout + "/")}
}

// Draw is Draw of the machine with this id.
func (d *Drawer) Draw(machine string) float64 {
	d.buf = append(append(d.buf[:0], d.prefix...), machine...)
	d.mac.Reset()
	d.mac.Write(d.buf)
	sum := d.mac.Sum(d.sum[:0])
	return float64(binary.BigEndian.Uint64(sum)>>11) * (100.0 / (1 << 53))
}
