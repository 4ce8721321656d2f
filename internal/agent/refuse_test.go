package agent

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"livepatch"
	"livepatch/internal/api"
	"livepatch/internal/kernel"
	"livepatch/internal/kernel/kerneltest"
	"livepatch/internal/localapi"
	"livepatch/internal/stream"
)

// TestEnableRefuses: what enable says no to. No seat is taken and the kernel is
// not touched.
func TestEnableRefuses(t *testing.T) {
	t.Parallel()
	deny := func(code livepatch.Code, message string) func(*bench) {
		return func(b *bench) { b.srv.enrolError = &livepatch.Error{Code: code, Message: message} }
	}
	kernelSays := func(name, content string) func(*bench) {
		return func(b *bench) { b.kern.Set(name, content) }
	}
	for name, tc := range map[string]struct {
		set  func(*bench)
		req  localapi.EnableRequest
		code livepatch.Code
		text string
	}{
		"bad token":           {req: localapi.EnableRequest{Token: "lp_bad"}, code: livepatch.CodeUnknownToken, text: "Unknown Auth-Token"},
		"no token":            {req: localapi.EnableRequest{Token: " "}, code: livepatch.CodeInvalid, text: "livepatch enable TOKEN"},
		"revoked token":       {set: deny(livepatch.CodeTokenRevoked, "this token was revoked"), code: livepatch.CodeTokenRevoked, text: "revoked"},
		"exhausted token":     {set: deny(livepatch.CodeTokenUsed, "this token was used 3 times"), code: livepatch.CodeTokenUsed, text: "used 3 times"},
		"no seat":             {set: deny(livepatch.CodeSeatLimit, "3 of 3 seats are taken: a, b, c"), code: livepatch.CodeSeatLimit, text: "a, b, c"},
		"clock wrong":         {set: func(b *bench) { b.srv.skew = 24 * time.Hour }, code: livepatch.CodeClock, text: "clock is -24h0m0s off the server's"},
		"server down":         {set: func(b *bench) { b.srv.down = true }, code: livepatch.CodeUnavailable, text: "https://livepatch.test is not reachable"},
		"plain http":          {req: localapi.EnableRequest{Token: goodToken, Server: "http://livepatch.test"}, code: livepatch.CodeInvalid, text: "write https"},
		"no server":           {req: localapi.EnableRequest{Token: goodToken, Server: "-"}, code: livepatch.CodeInvalid, text: "which server?"},
		"another stream":      {req: localapi.EnableRequest{Token: goodToken, Trust: "sha256:" + strings.Repeat("0", 64)}, code: livepatch.CodeMetadata, text: "fingerprint"},
		"container":           {set: kernelSays("run/systemd/container", "lxc\n"), code: livepatch.CodeUnsupported, text: "this is a container (lxc)"},
		"no root":             {set: kernelSays("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0\n"), code: livepatch.CodeNotPrivileged, text: "root"},
		"no CAP_SYS_MODULE":   {set: kernelSays("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t0\n"), code: livepatch.CodeNotPrivileged, text: "CAP_SYS_MODULE"},
		"modules_disabled":    {set: kernelSays("proc/sys/kernel/modules_disabled", "1\n"), code: livepatch.CodeUnsupported, text: "modules_disabled is 1"},
		"no livepatching":     {set: func(b *bench) { b.kern.Unset("sys/kernel/livepatch") }, code: livepatch.CodeUnsupported, text: "CONFIG_LIVEPATCH"},
		"build id not told":   {set: func(b *bench) { b.kern.Set("sys/kernel/notes", "") }, code: livepatch.CodeUnsupported, text: "build id"},
		"disk full":           {set: func(b *bench) { b.a.dir.create = fullDisk("identity") }, code: livepatch.CodeDisk, text: "disk is full"},
		"something no server": {set: func(b *bench) { b.srv.spoil = func(string, []byte) []byte { return []byte("<html>") } }, code: livepatch.CodeMetadata, text: "root"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			if tc.set != nil {
				tc.set(b)
			}
			if tc.req.Token == "" {
				tc.req.Token = goodToken
			}
			switch tc.req.Server {
			case "":
				tc.req.Server = serverURL
			case "-":
				tc.req.Server = ""
			}
			_, err := b.a.enable(t.Context(), tc.req)
			wantError(t, err, tc.code, tc.text)
			if len(b.srv.machines) != 0 {
				t.Error("a seat was taken")
			}
			if _, err := b.a.statusNow(time.Now()); livepatch.CodeOf(err) != livepatch.CodeNotEnabled || !strings.Contains(err.Error(), "Machine is not enabled") {
				t.Errorf("status says %v", err)
			}
			if calls := b.kern.Calls(); len(calls) != 0 {
				t.Errorf("the kernel was touched: %v", calls)
			}
		})
	}
}

// fullDisk makes writing files whose name has part fail as a full disk does.
func fullDisk(part string) func(string) (file, error) {
	return func(path string) (file, error) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err == nil && strings.Contains(path, part) {
			return fullFile{f}, nil
		}
		return f, err
	}
}

type fullFile struct{ *os.File }

func (f fullFile) Write(p []byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
}

// TestEnableNamesCertificateFaults uses a real TLS server whose certificate nobody
// vouches for.
func TestEnableNamesCertificateFaults(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	srv := httptest.NewServer(b.srv)
	srv.Close()
	tls := httptest.NewTLSServer(b.srv)
	defer tls.Close()
	b.a.o.HTTP = NewHTTP
	_, err := b.a.enable(t.Context(), localapi.EnableRequest{Token: goodToken, Server: tls.URL})
	wantError(t, err, livepatch.CodeTLS, "set ca-certs")
	_, err = b.a.enable(t.Context(), localapi.EnableRequest{Token: goodToken, Server: srv.URL})
	wantError(t, err, livepatch.CodeUnavailable, "not reachable")
	if len(b.srv.machines) != 0 || len(b.kern.Calls()) != 0 {
		t.Error("a seat was taken or the kernel touched")
	}
}

// TestLoadRefuses: what must never reach the kernel, whatever the server says. The
// machine runs version 1.1 already, and goes on with it.
func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	archives := func(b *bench, f func([]byte) []byte) {
		b.srv.spoil = func(path string, body []byte) []byte {
			if strings.HasPrefix(path, "/stream/archives/") {
				return f(body)
			}
			return body
		}
	}
	for name, tc := range map[string]struct {
		set  func(*bench)
		code livepatch.Code
		text string
	}{
		"not in the signed stream": {set: func(b *bench) { b.srv.offer(version(9)) }, code: livepatch.CodeMetadata, text: "which the signed stream does not have"},
		"older than what runs": {set: func(b *bench) { b.publish(3); b.refresh(); b.srv.offer(version(1)) },
			code: livepatch.CodeRollback, text: "older than the running 3.1"},
		"grant expired": {set: func(b *bench) {
			b.publish(2)
			b.srv.give(&livepatch.Grant{ID: "g", Action: livepatch.ActionApply, Version: version(2), Expires: time.Now().Add(-time.Second)})
		}, code: livepatch.CodeExpired, text: "has expired"},
		"another build of the release": {set: func(b *bench) {
			b.publish(2, func(p *livepatch.Livepatch) { p.BuildIDs = []string{strings.Repeat("ab", 20)} })
		}, code: livepatch.CodeWrongKernel, text: "not for this kernel"},
		"module for another kernel": {set: func(b *bench) {
			ko := bytes.ReplaceAll(b.module(2), []byte("6.1.0-47-cloud"), []byte("6.1.0-53-cloud"))
			b.publishFile(2, ko, func(p *livepatch.Livepatch) {
				p.Module.VerMagic = strings.ReplaceAll(p.Module.VerMagic, "-53-", "-47-")
			})
		}, code: livepatch.CodeWrongKernel, text: `a module for kernel "6.1.0-53-cloud-amd64"`},
		"module under another name": {set: func(b *bench) {
			b.publish(2, func(p *livepatch.Livepatch) { p.Module.Name = "lp_other" })
		}, code: livepatch.CodeTampered, text: "the module says it is lp_test_002"},
		"not a livepatch": {set: func(b *bench) {
			ko, err := os.ReadFile("../elfobj/testdata/plain.ko")
			b.ok(err)
			b.publishFile(2, ko)
		}, code: livepatch.CodeNotLivepatch, text: "livepatch"},
		"no module at all": {set: func(b *bench) { b.publishFile(2, []byte("#!/bin/sh\n")) }, code: livepatch.CodeNotLivepatch, text: ""},
		"truncated module": {set: func(b *bench) { b.publishFile(2, b.module(2)[:4096]) }, code: livepatch.CodeNotLivepatch, text: ""},
		"truncated archive": {set: func(b *bench) {
			b.publish(2)
			archives(b, func(body []byte) []byte { return body[:len(body)/2] })
		}, code: livepatch.CodeTampered, text: "its archive ends after"},
		"tampered archive": {set: func(b *bench) {
			b.publish(2)
			archives(b, func(body []byte) []byte { body = bytes.Clone(body); body[len(body)-1] ^= 1; return body })
		}, code: livepatch.CodeTampered, text: "refused"},
		"bomb": {set: func(b *bench) {
			b.publish(2)
			bomb, _, err := stream.CompressModule(make([]byte, 32<<20))
			b.ok(err)
			archives(b, func([]byte) []byte { return bomb })
		}, code: livepatch.CodeTampered, text: "bytes that were signed"},
		"archive missing": {set: func(b *bench) {
			b.publish(2)
			archives(b, func([]byte) []byte { return nil })
		}, code: livepatch.CodeMetadata, text: "its store is incomplete"},
		"signatures enforced": {set: func(b *bench) {
			b.publish(2)
			b.kern.Set("sys/module/module/parameters/sig_enforce", "Y\n")
		}, code: livepatch.CodeUntrustedKey, text: "loads only signed modules"},
		"modules disabled since": {set: func(b *bench) {
			b.publish(2)
			b.kern.Set("proc/sys/kernel/modules_disabled", "1\n")
		}, code: livepatch.CodeUnsupported, text: "modules_disabled"},
		"disk full while caching": {set: func(b *bench) {
			b.publish(2)
			b.a.dir.create = fullDisk(moduleName(2))
		}, code: livepatch.CodeDisk, text: "disk is full"},
		"disk full for the journal": {set: func(b *bench) {
			b.publish(2)
			b.a.dir.create = fullDisk(journalFile)
		}, code: livepatch.CodeDisk, text: "disk is full"},
		"withdrawn": {set: func(b *bench) {
			b.publish(2)
			b.repo.Withdraw(kerneltest.Running().Target(), version(2), "it eats files")
		}, code: livepatch.CodeWithdrawn, text: "it eats files"},
		"somebody else's livepatch": {set: func(b *bench) {
			b.publish(2)
			foreign := filepath.Join(b.TempDir(), "kpatch.ko")
			b.ok(os.WriteFile(foreign, kerneltest.Module{Name: "kpatch_x", VerMagic: kerneltest.Running().Release + " SMP", Livepatch: true, Stacked: true}.Bytes(), 0o600))
			b.ok(b.kern.System().Load(b.Context(), foreign))
		}, code: livepatch.CodeConflict, text: "kpatch_x was loaded by somebody else"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.enable()
			b.publish(1)
			b.refresh()
			tc.set(b)
			before := b.kern.Calls()
			running := b.status().Status[0].Livepatch.Version
			s := b.refresh()
			b.wantProblem(tc.code, tc.text)
			if after := b.kern.Calls(); !slices.Equal(before, after) {
				t.Errorf("the kernel was touched: %v", after[len(before):])
			}
			if s.Status[0].Livepatch.Version != running || s.Status[0].Livepatch.State != livepatch.StateApplyFailed {
				t.Errorf("status is %+v, want %s to run on", s.Status[0].Livepatch, running)
			}
			r, ok := b.srv.report(livepatch.ReportFailed)
			if !ok || r.Code != tc.code || r.Detail == "" {
				t.Errorf("the server was told %+v", r)
			}
			// A reboot brings back what ran.
			b.orderly()
			b.kern.Set("proc/sys/kernel/modules_disabled", "0\n")
			b.boot()
			if got := b.status().Status[0].Livepatch.Version; got != running {
				t.Errorf("after a reboot %s runs, want %s", got, running)
			}
		})
	}
}

// TestStreamRefuses: metadata that is not acceptable. The check fails, what runs
// stays, nothing new is loaded.
func TestStreamRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		set  func(*bench)
		code livepatch.Code
		text string
	}{
		"expired": {set: func(b *bench) { time.Sleep(48 * time.Hour); b.srv.offer(version(1)) }, code: livepatch.CodeExpired, text: "expired"},
		"rolled back": {set: func(b *bench) {
			old := map[string][]byte{}
			b.remember(old)
			b.publish(2)
			b.ok(errors.Join(b.a.lock(b.Context())))
			b.ok(b.a.refreshStream(b.Context()))
			b.a.unlock()
			b.srv.spoil = func(path string, body []byte) []byte {
				if o, ok := old[path]; ok && strings.HasSuffix(path, "timestamp.json") {
					return o
				}
				return body
			}
		}, code: livepatch.CodeRollback, text: ""},
		"mixed": {set: func(b *bench) {
			old := map[string][]byte{}
			b.remember(old)
			b.publish(2)
			b.srv.spoil = func(path string, body []byte) []byte {
				if strings.HasSuffix(path, "snapshot.json") {
					for name, o := range old {
						if strings.HasSuffix(name, "snapshot.json") {
							return o
						}
					}
				}
				return body
			}
		}, code: livepatch.CodeTampered, text: "snapshot"},
		"tampered": {set: func(b *bench) {
			b.publish(2)
			b.srv.spoil = func(path string, body []byte) []byte {
				if strings.HasSuffix(path, "catalogue.json") {
					return bytes.Replace(body, []byte("CVE-2026-1234"), []byte("CVE-2026-4321"), 1)
				}
				return body
			}
		}, code: livepatch.CodeTampered, text: ""},
		"server down": {set: func(b *bench) { b.publish(2); b.srv.down = true }, code: livepatch.CodeUnavailable, text: "not reachable"},
		"machine removed": {set: func(b *bench) { b.publish(2); clear(b.srv.machines) },
			code: livepatch.CodeUnauthorized, text: "the server does not know this machine any more"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.enable()
				b.publish(1)
				b.refresh()
				tc.set(b)
				_, err := b.a.refresh(t.Context(), localapi.RefreshRequest{})
				wantError(t, err, tc.code, tc.text)
				b.wantProblem(tc.code, tc.text)
				b.wantLoads(moduleName(1))
				b.wantRunning(moduleName(1))
				s := b.status()
				if !strings.HasPrefix(s.ServerCheckIn, "failed: ") || s.Status[0].Livepatch.CheckState != livepatch.CheckFailed || s.Status[0].Livepatch.State != livepatch.StateApplied {
					t.Errorf("status is %q %+v", s.ServerCheckIn, s.Status[0].Livepatch)
				}
			})
		})
	}
}

// remember keeps every stream file that is served from now until the next change.
func (b *bench) remember(files map[string][]byte) {
	b.srv.spoil = func(path string, body []byte) []byte {
		files[path] = bytes.Clone(body)
		return body
	}
	b.ok(os.RemoveAll(b.a.dir.file(streamDir)))
	b.a.reader = nil
	_, err := b.a.trust(b.Context(), &api.Client{BaseURL: serverURL, HTTP: &http.Client{Transport: direct{b.srv}}}, "")
	b.ok(err)
	b.refresh()
	b.srv.spoil = nil
}

func TestWrongClockIsNamed(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.srv.skew = 3 * time.Hour
	b.refresh()
	b.wantProblem(livepatch.CodeClock, "this machine's clock is -3h0m0s off the server's")
}

func TestKernelRefusesUnknownKey(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.enable()
	b.publish(1)
	b.kern.Refuse(syscall.ENOKEY, "Loading of module with unavailable key is rejected")
	b.refresh()
	b.wantProblem(livepatch.CodeUntrustedKey, "mokutil")
	b.wantRunning()
	if r, _ := b.srv.report(livepatch.ReportFailed); r.Code != livepatch.CodeUntrustedKey || !strings.Contains(r.Detail, "unavailable key") {
		t.Errorf("the server was told %+v", r)
	}
	if b.a.journal != nil {
		t.Errorf("the journal says %+v of a module that the kernel does not have", b.a.journal)
	}
}

func TestStuckTransitionIsReversedAndNamed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.enable()
		b.publish(1)
		b.refresh()
		b.publish(2)
		b.kern.HoldApply(kernel.Task{PID: 412, TID: 412, Comm: "backupd", Stack: "nfs_wait+0x1\n"})
		b.refresh()
		b.wantProblem(livepatch.CodeStuck, "held up by backupd (412)")
		b.wantRunning(moduleName(1))
		r, ok := b.srv.report(livepatch.ReportStuck)
		if !ok || r.Version != version(2) || !strings.Contains(r.Evidence, "nfs_wait") {
			t.Errorf("the server was told %+v", r)
		}
		b.kern.HoldApply()
		b.srv.offer(version(2))
		b.refresh()
		b.wantRunning(moduleName(2))
	})
}
