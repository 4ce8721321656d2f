package stream

import (
	"errors"
	"fmt"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"livepatch"
)

// Short names for go-tuf's generic types.
type (
	rootMeta      = metadata.Metadata[metadata.RootType]
	targetsMeta   = metadata.Metadata[metadata.TargetsType]
	snapshotMeta  = metadata.Metadata[metadata.SnapshotType]
	timestampMeta = metadata.Metadata[metadata.TimestampType]
)

// parse reads metadata of one type. It checks form, not signatures.
func parse[T metadata.Roles](b []byte) (*metadata.Metadata[T], error) {
	m := &metadata.Metadata[T]{}
	err := guard(func() error {
		_, err := m.FromBytes(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// verify checks that delegator trusts the signatures on m for role.
func verify[D, T metadata.Roles](delegator *metadata.Metadata[D], role string, m *metadata.Metadata[T]) error {
	return guard(func() error { return delegator.VerifyDelegate(role, m) })
}

// guard runs code of go-tuf that handles hostile bytes. Some shapes of valid JSON
// (a missing entry in meta, a key of odd length, a number that is no integer) make
// it panic; to us that is one more way of being unacceptable.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &metadata.ErrRepository{Msg: fmt.Sprintf("malformed metadata: %v", r)}
		}
	}()
	return f()
}

// tufError turns go-tuf's refusal of a file into one for people. name is the
// file's name in the stream.
func tufError(name string, err error) error {
	var le *livepatch.Error
	if err == nil || errors.As(err, &le) {
		return err
	}
	var (
		expired    *metadata.ErrExpiredMetadata
		version    *metadata.ErrBadVersionNumber
		hash       *metadata.ErrLengthOrHashMismatch
		signatures *metadata.ErrUnsignedMetadata
	)
	switch {
	case errors.As(err, &expired):
		return livepatch.Errorf(livepatch.CodeExpired, "the stream has expired (%s): the server is not kept up to date or withholds updates; nothing is loaded from it until it is renewed: %w", name, err)
	case errors.As(err, &version):
		return livepatch.Errorf(livepatch.CodeRollback, "the server offers an older stream than this machine has seen (%s); it is refused: %w", name, err)
	case errors.As(err, &hash):
		return livepatch.Errorf(livepatch.CodeTampered, "%s is not the file that was signed; it is refused: %w", name, err)
	case errors.As(err, &signatures):
		return livepatch.Errorf(livepatch.CodeMetadata, "%s does not carry enough valid signatures; it is refused: %w", name, err)
	}
	return livepatch.Errorf(livepatch.CodeMetadata, "%s is not acceptable stream metadata: %w", name, err)
}

// describe is the entry of a file in snapshot or timestamp: version, length, hash.
func describe(version int64, b []byte) *metadata.MetaFiles {
	tf := mustDescribeTarget("", b)
	return &metadata.MetaFiles{Version: version, Length: tf.Length, Hashes: tf.Hashes}
}

// mustDescribeTarget is the entry of a target file: length and SHA-256.
func mustDescribeTarget(path string, b []byte) *metadata.TargetFiles {
	tf, err := metadata.TargetFile().FromBytes(path, b, "sha256")
	if err != nil {
		// Hashing memory with a known algorithm does not fail.
		panic(err)
	}
	return tf
}
