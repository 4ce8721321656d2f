package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/smtp"
	"strings"
	"time"

	"livepatch/internal/api"
)

// Mail is how to send mail: by SMTP, with STARTTLS where the server offers it.
type Mail struct {
	// Server is HOST:PORT.
	Server string
	// User and Password log in, over TLS only; an empty User does not.
	User, Password string
	From           string
	To             []string
}

// NewMail sends alarms by mail.
func NewMail(m Mail) *Alarms {
	return newAlarms("mail", func(ctx context.Context, a api.Alarm) error { return m.send(ctx, letter(m, a, time.Now())) })
}

func (m Mail) send(ctx context.Context, letter []byte) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", m.Server)
	if err != nil {
		return fmt.Errorf("reach mail server: %w", err)
	}
	defer conn.Close()
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return fmt.Errorf("bound the time of a mail: %w", err)
		}
	}
	host, _, _ := net.SplitHostPort(m.Server)
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return fmt.Errorf("greet mail server: %w", err)
	}
	if err := m.secure(c, host); err != nil {
		return err
	}
	if err := c.Mail(m.From); err != nil {
		return fmt.Errorf("name sender: %w", err)
	}
	for _, to := range m.To {
		if err := c.Rcpt(to); err != nil {
			return fmt.Errorf("name receiver: %w", err)
		}
	}
	w, err := c.Data()
	if err != nil {
		return fmt.Errorf("send mail: %w", err)
	}
	if _, err := w.Write(letter); err != nil {
		return fmt.Errorf("send mail: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("send mail: %w", err)
	}
	return c.Quit()
}

// secure begins TLS where it is offered, and logs in. smtp.PlainAuth refuses to do
// so without TLS, except to this host.
func (m Mail) secure(c *smtp.Client, host string) error {
	if ok, _ := c.Extension("STARTTLS"); ok {
		if err := c.StartTLS(&tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}); err != nil {
			return fmt.Errorf("begin TLS: %w", err)
		}
	}
	if m.User == "" {
		return nil
	}
	if err := c.Auth(smtp.PlainAuth("", m.User, m.Password, host)); err != nil {
		return fmt.Errorf("log in to mail server: %w", err)
	}
	return nil
}

// letter writes an alarm as RFC 5322 wants it.
func letter(m Mail, a api.Alarm, at time.Time) []byte {
	var b strings.Builder
	verb, _ := strings.CutPrefix(a.Event, "rollout.")
	subject := fmt.Sprintf("Livepatch %s of %s: %s", a.Version, a.Kernel.Release, verb)
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\nSubject: %s\r\nDate: %s\r\n", m.From, strings.Join(m.To, ", "),
		mime.QEncoding.Encode("utf-8", oneLine(subject)), at.Format(time.RFC1123Z))
	b.WriteString("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n")
	w := quotedprintable.NewWriter(&b)
	fmt.Fprintf(w, "Rollout %s of livepatch %s for %s\n%s by %s at %s: %s\n", a.Rollout, a.Version, a.Kernel,
		a.Change.Action, a.Change.Actor, a.Change.At.UTC().Format(time.RFC3339), a.Change.Reason)
	if e := a.Change.Assessment; e != nil {
		fmt.Fprintf(w, "\nEvidence %.3g, threshold %.0f.\n", e.Evidence, e.Threshold)
		for _, f := range e.Findings {
			fmt.Fprintf(w, "- %s\n  Machines: %s\n", f.Text, strings.Join(f.Machines, " "))
		}
	}
	fmt.Fprintf(w, "\nlivepatch-admin rollout show %s\n", a.Rollout)
	_ = w.Close() // a strings.Builder takes everything
	return []byte(b.String())
}

// oneLine keeps what others wrote from adding header fields.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
