package klp_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"livepatch"
	"livepatch/internal/klp"
)

const magic = "~Module signature appended~\n"

func TestSign(t *testing.T) {
	t.Parallel()
	made, err := klp.NewSigner(rand.Reader, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := made.MarshalKey()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := klp.ParseSigner(key, made.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	module := bytes.Repeat([]byte("module"), 100)
	signed, err := signer.Sign(module)
	if err != nil {
		t.Fatal(err)
	}

	// What the kernel does: magic, struct module_signature, message, content.
	rest, ok := bytes.CutSuffix(signed, []byte(magic))
	if !ok || len(rest) < 12 {
		t.Fatal("the signed module does not end as the kernel expects")
	}
	trailer := rest[len(rest)-12:]
	if !bytes.Equal(trailer[:8], []byte{0, 0, 2, 0, 0, 0, 0, 0}) {
		t.Errorf("trailer %x, want PKEY_ID_PKCS7 and zeros", trailer[:8])
	}
	rest = rest[:len(rest)-12]
	size := int(binary.BigEndian.Uint32(trailer[8:]))
	if size > len(rest) || !bytes.Equal(rest[:len(rest)-size], module) {
		t.Fatal("signature size does not lead back to the module")
	}
	message, err := pkcs7.Parse(rest[len(rest)-size:])
	if err != nil {
		t.Fatal(err)
	}
	if len(message.Content) > 0 || len(message.Signers[0].AuthenticatedAttributes) > 0 {
		t.Error("the message is not detached or has signed attributes, which the kernel refuses")
	}
	cert, err := x509.ParseCertificate(made.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	message.Content, message.Certificates = module, []*x509.Certificate{cert}
	if err := message.Verify(); err != nil {
		t.Errorf("the signature is not good: %v", err)
	}
	message.Content = append(bytes.Clone(module), 'x')
	if message.Verify() == nil {
		t.Error("the signature is good for another module too")
	}

	if _, err := signer.Sign(signed); livepatch.CodeOf(err) != livepatch.CodeConflict {
		t.Errorf("signing twice: %v, want conflict", err)
	}
}

func TestParseSignerRefuses(t *testing.T) {
	t.Parallel()
	a, err1 := klp.NewSigner(rand.Reader, "a", time.Now())
	b, err2 := klp.NewSigner(rand.Reader, "b", time.Now())
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	key, err := a.MarshalKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]struct{ key, cert []byte }{
		"another certificate": {key, b.Certificate()},
		"no PEM":              {[]byte("x"), a.Certificate()},
		"no certificate":      {key, []byte("x")},
	} {
		if _, err := klp.ParseSigner(in.key, in.cert); livepatch.CodeOf(err) != livepatch.CodeInvalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}
