package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"livepatch"
	"livepatch/internal/blob"
	"livepatch/internal/cli"
	"livepatch/internal/server"
	"livepatch/internal/store"
	"livepatch/internal/stream"
)

func (p *program) serve() *cobra.Command {
	c := &cobra.Command{
		Use:   "serve --data DIR",
		Short: "Serve machines and operators",
		Long: `Serve machines and operators until SIGTERM or SIGINT. Settings are read from, later
ones win: DATA/server.yaml, the file of --config, the environment (` + envPrefix + `LISTEN
and so on), flags.`,
		Example: `  # As the packaged service does
  livepatch-server serve --data /var/lib/livepatch-server

  # To look at it on this host only
  livepatch-server serve --data ./data --listen 127.0.0.1:8443 --log-level debug`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := p.settings(c)
			if err == nil {
				err = p.runServe(c.Context(), s)
			}
			if err != nil {
				return fmt.Errorf("cannot serve: %w", err)
			}
			return nil
		},
	}
	p.addFlags(c)
	return c
}

func (p *program) runServe(ctx context.Context, s settings) (err error) {
	unlock, err := p.lock()
	if err != nil {
		return err
	}
	defer unlock()
	log := slog.New(slog.NewTextHandler(p.s.Err, &slog.HandlerOptions{Level: s.LogLevel}))
	db, err := store.OpenSQLite(ctx, filepath.Join(p.data, "server.db"), p.now)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	blobs, err := blob.OpenDir(filepath.Join(p.data, "blobs"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	online, spare, err := p.onlineKeys()
	if err != nil {
		return err
	}
	conf, err := p.tlsConfig(s)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", s.Listen)
	if err != nil {
		return livepatch.Errorf(livepatch.CodeUnavailable, "nothing can listen on %s: %w", s.Listen, err)
	}
	srv := server.New(server.Options{
		Store: db, Blobs: blobs, Stream: &stream.Publisher{Store: blobs, Keys: online, Spare: spare, Now: p.now},
		Log: log, Now: p.now, Version: cli.Version(),
		PublicURL:      p.publicURL(s, listener.Addr()),
		KeepAlive:      func() time.Duration { return jitter(s.KeepAlive) },
		BehindProxy:    s.PlainHTTP,
		EnrolPerMinute: s.EnrolPerMinute, CheckInterval: s.CheckInterval,
		RolloutPolicy: s.RolloutPolicy, Alarms: s.alarms(),
	})
	return srv.Serve(ctx, listener, conf, func() {
		log.Info("serving", "listen", listener.Addr().String(), "public-url", srv.PublicURL, "version", cli.Version())
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Warn("tell systemd that the server is ready", "err", err)
		}
	})
}

// alarms are the ways to tell people of halts.
func (s settings) alarms() []*server.Alarms {
	var ways []*server.Alarms
	if s.WebhookURL != "" {
		ways = append(ways, server.NewWebhook(s.WebhookURL, s.WebhookSecret, nil))
	}
	if s.MailTo != "" {
		ways = append(ways, server.NewMail(server.Mail{Server: s.MailServer, User: s.MailUser, Password: s.MailPassword,
			From: s.MailFrom, To: strings.Split(s.MailTo, ",")}))
	}
	return ways
}

// initialised makes sure that init finished in the data folder.
func (p *program) initialised() error {
	if p.data == "" {
		return livepatch.Errorf(livepatch.CodeInvalid, "say where the data folder is: --data DIR (or %sDATA)", envPrefix)
	}
	if _, err := os.Stat(filepath.Join(p.data, unfinished)); err == nil {
		return livepatch.Errorf(livepatch.CodeConflict, "init was interrupted in %s; run it again: livepatch-server init --data %s", p.data, p.data)
	}
	if _, err := os.Stat(filepath.Join(p.data, "server.db")); errors.Is(err, fs.ErrNotExist) {
		return livepatch.Errorf(livepatch.CodeNotFound, "there is no server in %s; make one: livepatch-server init --data %s", p.data, p.data)
	}
	return nil
}

// lock makes sure that this is the only server on the data folder: SQLite could be
// shared, the stream has one publisher.
func (p *program) lock() (unlock func(), err error) {
	if err := p.initialised(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(p.data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(livepatch.Errorf(livepatch.CodeConflict, "another livepatch-server runs on %s; stop it first", p.data), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// tlsConfig is nil for plain HTTP.
func (p *program) tlsConfig(s settings) (*tls.Config, error) {
	if s.PlainHTTP {
		return nil, nil
	}
	c := &certificate{certFile: s.TLSCert, keyFile: s.TLSKey, now: p.now}
	if s.TLSCert == "" {
		c.renew = func() error { return renewCertificate(p.data, p.now()) }
		c.certFile, c.keyFile = filepath.Join(p.data, "server.crt"), filepath.Join(p.data, "server.key")
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

// publicURL is the setting, or a guess from this host's name and the port.
func (p *program) publicURL(s settings, addr net.Addr) string {
	if s.PublicURL != "" {
		return s.PublicURL
	}
	scheme, port := "https", ""
	if s.PlainHTTP {
		scheme = "http"
	}
	if tcp, ok := addr.(*net.TCPAddr); ok {
		port = strconv.Itoa(tcp.Port)
	}
	return scheme + "://" + net.JoinHostPort(p.hostname, port)
}

// jitter is d, give or take a fifth, so that many streams do not wake at the same
// moment.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}
