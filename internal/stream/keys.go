package stream

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// Key is a private ed25519 key of the stream. Which role it signs for the root
// says, not the key.
type Key struct {
	private ed25519.PrivateKey
}

// PublicKey is the public half, as the root lists it: 64 hex digits in text.
type PublicKey [ed25519.PublicKeySize]byte

// GenerateKey makes a key from random.
func GenerateKey(random io.Reader) (Key, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return Key{}, fmt.Errorf("generate key: %w", err)
	}
	return Key{private: ed25519.NewKeyFromSeed(seed)}, nil
}

// Public is the key's public half.
func (k Key) Public() PublicKey { return PublicKey(k.private.Public().(ed25519.PublicKey)) }

// ID is the key's TUF key id.
func (k Key) ID() string { return k.Public().ID() }

// ID is the key's TUF key id: the SHA-256 of its canonical description, in hex.
func (p PublicKey) ID() string {
	id, err := p.tuf().ID()
	if err != nil {
		// The description is three short ASCII strings: it always encodes.
		panic(err)
	}
	return id
}

func (p PublicKey) tuf() *metadata.Key {
	return &metadata.Key{
		Type:   metadata.KeyTypeEd25519,
		Scheme: metadata.KeySchemeEd25519,
		Value:  metadata.KeyVal{PublicKey: hex.EncodeToString(p[:])},
	}
}

// MarshalText implements encoding.TextMarshaler.
func (p PublicKey) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(p[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *PublicKey) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(p) {
		return livepatch.Errorf(livepatch.CodeInvalid, "public key %q is not 64 hex digits", b)
	}
	copy(p[:], raw)
	return nil
}

// MarshalPEM returns the private key as PKCS #8 in PEM.
func (k Key) MarshalPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads what MarshalPEM wrote.
func ParseKey(b []byte) (Key, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return Key{}, livepatch.Errorf(livepatch.CodeInvalid, "no PEM block with a private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return Key{}, livepatch.Errorf(livepatch.CodeInvalid, "no PKCS #8 private key: %w", err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return Key{}, livepatch.Errorf(livepatch.CodeInvalid, "the private key is not an ed25519 key")
	}
	return Key{private: private}, nil
}

// WriteKey writes the key to a new file, readable by its owner only. An existing
// file is never overwritten: it might be the only copy of a key.
func WriteKey(path string, k Key) error {
	b, err := k.MarshalPEM()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return livepatch.Errorf(livepatch.CodeConflict, "%s exists already; a key is never overwritten", path)
	}
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

// LoadKey reads one key file.
func LoadKey(path string) (Key, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Key{}, fmt.Errorf("load key: %w", err)
	}
	k, err := ParseKey(b)
	if err != nil {
		return Key{}, fmt.Errorf("load key %s: %w", path, err)
	}
	return k, nil
}

// LoadKeys reads every root-*.pem and signing-*.pem in a folder, in the order of
// their names. No such file is an error.
func LoadKeys(dir string) ([]Key, error) {
	var keys []Key
	for _, pattern := range []string{"root-*.pem", "signing-*.pem"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		slices.Sort(paths)
		for _, path := range paths {
			k, err := LoadKey(path)
			if err != nil {
				return nil, err
			}
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, livepatch.Errorf(livepatch.CodeNotFound, "no keys (root-*.pem, signing-*.pem) in %s", dir)
	}
	return keys, nil
}

// OnlineKeys are the two private keys that the server holds.
type OnlineKeys struct {
	Snapshot, Timestamp Key
}

// OnlinePublic are the public halves of OnlineKeys: the content of
// online-keys.json, which the operator's first root lists.
type OnlinePublic struct {
	Snapshot  PublicKey `json:"snapshot"`
	Timestamp PublicKey `json:"timestamp"`
}

// Public returns the public halves.
func (o OnlineKeys) Public() OnlinePublic {
	return OnlinePublic{Snapshot: o.Snapshot.Public(), Timestamp: o.Timestamp.Public()}
}

// GenerateOnlineKeys makes both keys from random.
func GenerateOnlineKeys(random io.Reader) (OnlineKeys, error) {
	snapshot, err1 := GenerateKey(random)
	timestamp, err2 := GenerateKey(random)
	return OnlineKeys{Snapshot: snapshot, Timestamp: timestamp}, errors.Join(err1, err2)
}

// WriteOnlineKeys writes snapshot.pem and timestamp.pem in dir.
func WriteOnlineKeys(dir string, o OnlineKeys) error {
	return errors.Join(
		WriteKey(filepath.Join(dir, "snapshot.pem"), o.Snapshot),
		WriteKey(filepath.Join(dir, "timestamp.pem"), o.Timestamp))
}

// LoadOnlineKeys reads what WriteOnlineKeys wrote.
func LoadOnlineKeys(dir string) (OnlineKeys, error) {
	snapshot, err1 := LoadKey(filepath.Join(dir, "snapshot.pem"))
	timestamp, err2 := LoadKey(filepath.Join(dir, "timestamp.pem"))
	return OnlineKeys{Snapshot: snapshot, Timestamp: timestamp}, errors.Join(err1, err2)
}

// ParseOnlinePublic reads online-keys.json.
func ParseOnlinePublic(b []byte) (OnlinePublic, error) {
	var o OnlinePublic
	if err := json.Unmarshal(b, &o); err != nil {
		return o, livepatch.Errorf(livepatch.CodeInvalid, "not a file of online keys: %w", err)
	}
	if o.Snapshot == (PublicKey{}) || o.Timestamp == (PublicKey{}) {
		return o, livepatch.Errorf(livepatch.CodeInvalid, "a file of online keys names both snapshot and timestamp")
	}
	return o, nil
}

// sign adds k's signature to m, replacing one that k made before.
func sign[T metadata.Roles](m *metadata.Metadata[T], k Key) error {
	id := k.ID()
	m.Signatures = slices.DeleteFunc(m.Signatures, func(s metadata.Signature) bool { return s.KeyID == id })
	signer, err := signature.LoadED25519Signer(k.private)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	if _, err := m.Sign(signer); err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	return nil
}
