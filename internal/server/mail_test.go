package server

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/rollout"
)

// postbox takes one mail and tells what it was sent, line by line.
func postbox(t *testing.T) (address string, letters <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, "220 postbox\r\n")
		var all strings.Builder
		inside := false
		for lines := bufio.NewScanner(c); lines.Scan(); {
			line := lines.Text()
			all.WriteString(line + "\n")
			switch {
			case inside && line != ".":
			case inside:
				inside = false
				fmt.Fprint(c, "250 taken\r\n")
			case line == "DATA":
				inside = true
				fmt.Fprint(c, "354 go on\r\n")
			case line == "QUIT":
				fmt.Fprint(c, "221 bye\r\n")
				got <- all.String()
				return
			default:
				fmt.Fprint(c, "250 ok\r\n")
			}
		}
	}()
	return l.Addr().String(), got
}

func TestMailCarriesTheEvidence(t *testing.T) {
	t.Parallel()
	server, letters := postbox(t)
	m := NewMail(Mail{Server: server, From: "livepatch@example.com", To: []string{"ann@example.com", "bob@example.com"}})
	alarm := api.Alarm{Event: "rollout.halt", Rollout: "r1", Kernel: kernel.Target(), Version: livepatch.Version{Major: 3, Minor: 1},
		Change: rollout.StageChange{At: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), Actor: "judge", Action: "halt", Reason: "it oopses\r\nBcc: eve@example.com",
			Assessment: &rollout.Assessment{Evidence: 12345, Threshold: 10000, Findings: []rollout.Finding{{Text: "5 of 5 came from it.", Machines: []string{"m-1"}}}}}}
	must(t, m.deliver(t.Context(), alarm))
	text := wait(t, t.Context(), letters, "mail")
	for _, want := range []string{"MAIL FROM:<livepatch@example.com>", "RCPT TO:<ann@example.com>", "RCPT TO:<bob@example.com>",
		"Subject: Livepatch 3.1 of " + kernel.Release + ": halt", "it oopses", "5 of 5 came from it.", "Machines: m-1", "rollout show r1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the mail has no %q:\n%s", want, text)
		}
	}
	if head, _, _ := strings.Cut(text, "\n\n"); strings.Contains(head, "eve") {
		t.Errorf("a reason became a header field:\n%s", head)
	}
}
