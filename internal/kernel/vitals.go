package kernel

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"

	"livepatch"
)

// Vitals reads memory and load from /proc/meminfo and /proc/loadavg (proc(5)). What
// cannot be read is zero; nil when neither can.
func (s *System) Vitals() *livepatch.Vitals {
	meminfo, err1 := s.read("proc/meminfo")
	loadavg, err2 := s.read("proc/loadavg")
	if err1 != nil && err2 != nil {
		return nil
	}
	v := parseMeminfo(meminfo)
	if first, _, _ := strings.Cut(strings.TrimSpace(string(loadavg)), " "); first != "" {
		v.Load1, _ = strconv.ParseFloat(first, 64) // zero is "not known"
	}
	return &v
}

// parseMeminfo reads lines such as "MemAvailable:    1234 kB"; a kB is 1024 bytes.
func parseMeminfo(b []byte) (v livepatch.Vitals) {
	fields := map[string]*int64{"MemTotal": &v.MemTotal, "MemAvailable": &v.MemAvailable, "SUnreclaim": &v.KernelMemory}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		into := fields[name]
		if into == nil {
			continue
		}
		number, unit, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if kb, err := strconv.ParseInt(number, 10, 43); err == nil && kb >= 0 && unit == "kB" {
			*into = kb << 10
		}
	}
	return v
}
