package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"livepatch"
)

const (
	year       = 365 * 24 * time.Hour
	caLife     = 20 * year
	serverLife = 2 * year
	// renewBefore is how long before its end a certificate of our own CA is made
	// anew.
	renewBefore = 60 * 24 * time.Hour
	// skew is how far back new certificates begin, for machines whose clocks are
	// a little behind.
	skew = time.Hour
)

// authority is the certificate authority that init makes: it signs this server's
// certificate and nothing else.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes an authority and its files, ca.crt and ca.key in dir.
func newAuthority(dir, name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Livepatch CA of " + name},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	a := &authority{cert: template, key: key}
	return a, a.issue(template, key, filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
}

// loadAuthority reads what newAuthority wrote.
func loadAuthority(dir string) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("load CA: its key is of another kind than init makes")
	}
	return &authority{cert: pair.Leaf, key: key}, nil
}

// serverCertificate makes a certificate for hosts, server.crt and server.key in
// dir.
func (a *authority) serverCertificate(dir string, hosts []string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make server key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: hosts[0]},
		NotBefore:   now.Add(-skew),
		NotAfter:    now.Add(serverLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return a.issue(template, key, filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
}

// issue signs template and writes certificate and key, each whole or not at all.
func (a *authority) issue(template *x509.Certificate, key *ecdsa.PrivateKey, certFile, keyFile string) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("choose serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("sign certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return errors.Join(
		writeFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
		writeFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
}

// writeFile writes a file whole or not at all, replacing an older one.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// certificate is the server's certificate, read again when its file changes, so
// that whatever renews it need not restart the server.
type certificate struct {
	certFile, keyFile string
	now               func() time.Time
	// renew, when set, is called before the file is looked at.
	renew func() error

	mu       sync.Mutex
	current  *tls.Certificate
	modified time.Time
	looked   time.Time
}

// lookEvery is how often the file is looked at.
const lookEvery = time.Minute

// load reads the files if they changed. A broken pair is refused while there is
// an older one that works.
func (c *certificate) load() error {
	if c.renew != nil {
		if err := c.renew(); err != nil {
			return err
		}
	}
	info, err := os.Stat(c.certFile)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	if c.current != nil && info.ModTime().Equal(c.modified) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	c.current, c.modified = &pair, info.ModTime()
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.now().Sub(c.looked) > lookEvery {
		c.looked = c.now()
		if err := c.load(); err != nil && c.current == nil {
			return nil, err
		}
	}
	return c.current, nil
}

// renewCertificate makes server.crt in dir anew, for the same names, when it ends
// soon. It does nothing where init made no authority.
func renewCertificate(dir string, now time.Time) error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		return livepatch.Errorf(livepatch.CodeTLS, "server.crt and server.key in %s are not a usable pair; put them back from a backup, or give the server another certificate with --tls-cert and --tls-key: %w", dir, err)
	}
	leaf := pair.Leaf
	if now.Before(leaf.NotAfter.Add(-renewBefore)) {
		return nil
	}
	a, err := loadAuthority(dir)
	if err != nil {
		return err
	}
	hosts := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return a.serverCertificate(dir, hosts, now)
}
