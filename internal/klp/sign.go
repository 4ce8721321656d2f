package klp

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/smallstep/pkcs7"

	"livepatch"
)

// signatureMagic ends a signed module; include/linux/module_signature.h.
const signatureMagic = "~Module signature appended~\n"

// moduleSignature precedes the magic; struct module_signature in
// include/linux/module_signature.h. For PKCS #7 only id_type and sig_len are set
// (scripts/sign-file.c), the other fields must be zero (kernel/module_signature.c).
type moduleSignature struct {
	Algo, Hash, IDType, SignerLen, KeyIDLen byte
	_                                       [3]byte
	SigLen                                  uint32
}

// idTypePKCS7 is PKEY_ID_PKCS7.
const idTypePKCS7 = 2

// signerLife is how long a certificate is valid. The kernel does not look at it
// (x509 validity is not checked for module signatures), people do.
const signerLife = 10 * 365 * 24 * time.Hour

// moduleSigningOnly is the extended key usage with which shim and Ubuntu's kernels
// restrict a machine owner key to modules.
var moduleSigningOnly = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 2312, 16, 1, 2}

// Signer appends signatures that kernels check to modules. It has one RSA key and
// the self-signed certificate that machines enrol.
type Signer struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

// NewSigner makes a key and a certificate that is called name.
func NewSigner(random io.Reader, name string, now time.Time) (*Signer, error) {
	if name == "" || len(name) > 64 {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the name in a certificate has 1 to 64 characters")
	}
	// 3072 bits: what shim, mokutil and every kernel since 4.x verify.
	key, err := rsa.GenerateKey(random, 3072)
	if err != nil {
		return nil, fmt.Errorf("generate module key: %w", err)
	}
	serial := make([]byte, 16)
	if _, err := io.ReadFull(random, serial); err != nil {
		return nil, fmt.Errorf("generate serial number: %w", err)
	}
	serial[0] &= 0x7f // positive
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-24 * time.Hour), // clocks of machines differ
		NotAfter:              now.Add(signerLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{moduleSigningOnly},
		BasicConstraintsValid: true,
		SignatureAlgorithm:    x509.SHA256WithRSA,
	}
	der, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	return &Signer{key, cert}, nil
}

// ParseSigner reads what MarshalKey and Certificate gave.
func ParseSigner(keyPEM, certDER []byte) (*Signer, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the key for modules is not in PEM form")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the key for modules is not readable: %w", err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the key for modules is not an RSA key")
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "the certificate for modules is not readable: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, livepatch.Errorf(livepatch.CodeInvalid, "key and certificate for modules do not belong together")
	}
	return &Signer{key, cert}, nil
}

// MarshalKey returns the private key as PKCS #8 in PEM.
func (s *Signer) MarshalKey() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return nil, fmt.Errorf("encode module key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Certificate returns the certificate in DER, as mokutil and the kernel's build
// (CONFIG_SYSTEM_TRUSTED_KEYS) take it.
func (s *Signer) Certificate() []byte { return s.cert.Raw }

// Sign returns the module with a signature appended, in the kernel's format
// (Documentation/admin-guide/module-signing.rst). CodeConflict when it has one
// already: kernels check the last one only.
func (s *Signer) Sign(module []byte) ([]byte, error) {
	if bytes.HasSuffix(module, []byte(signatureMagic)) {
		return nil, livepatch.Errorf(livepatch.CodeConflict, "the module carries a signature already; sign the module as it was built")
	}
	sig, err := s.detached(module)
	if err != nil {
		return nil, fmt.Errorf("sign module: %w", err)
	}
	out := bytes.NewBuffer(bytes.Clone(module))
	out.Write(sig)
	// Writing to memory does not fail.
	_ = binary.Write(out, binary.BigEndian, moduleSignature{IDType: idTypePKCS7, SigLen: uint32(len(sig))})
	out.WriteString(signatureMagic)
	return out.Bytes(), nil
}

// detached makes the PKCS #7 message: detached, without attributes, the signer
// named by issuer and serial number, as scripts/sign-file.c does.
func (s *Signer) detached(content []byte) ([]byte, error) {
	sd, err := pkcs7.NewSignedData(content)
	if err != nil {
		return nil, err
	}
	sd.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	// The kernel knows plain rsaEncryption here (crypto/asymmetric_keys/pkcs7_parser.c).
	sd.SetEncryptionAlgorithm(pkcs7.OIDEncryptionAlgorithmRSA)
	if err := sd.SignWithoutAttr(s.cert, s.key, pkcs7.SignerInfoConfig{}); err != nil {
		return nil, err
	}
	sd.Detach()
	return sd.Finish()
}
