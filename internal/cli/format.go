package cli

import (
	"fmt"
	"strconv"
	"time"
)

// Age says how long ago at was, in its largest unit: "52 seconds ago", "1 minute
// ago". The zero time is "never"; what lies ahead is "in 5 minutes".
func Age(at, now time.Time) string {
	if at.IsZero() {
		return "never"
	}
	d := now.Sub(at)
	switch {
	case d < 0 && d > -time.Second, d >= 0 && d < time.Second:
		return "just now"
	case d < 0:
		return "in " + Duration(-d)
	}
	return Duration(d) + " ago"
}

// Duration says d in its largest unit, rounded down: "3 days", "1 hour",
// "52 seconds". Less than a second is "0 seconds".
func Duration(d time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{day, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if d >= u.unit {
			return Count(int(d/u.unit), u.name)
		}
	}
	return Count(int(d/time.Second), "second")
}

// Count says n things: "1 machine", "3 machines". The plural is made with an s.
func Count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// Bytes says a size with three digits at most and a binary unit: "512 B",
// "1.4 MiB".
func Bytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for ; f >= 1000 && i < 4; i++ {
		f /= unit
	}
	prec := 1
	if f >= 10 {
		prec = 0
	}
	return fmt.Sprintf("%.*f %ciB", prec, f, "KMGTP"[i])
}

// Time says when at was, for tables: UTC to the second. The zero time is "-".
func Time(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format("2006-01-02 15:04:05Z")
}
