// Package store keeps what the server knows in SQL: accounts, tokens, machines,
// patches, grants, reports, publications, the audit log. There is one method for
// each thing that happens, and each is one transaction. Secrets come in and only
// their hashes stay.
//
// Errors that people caused are livepatch.Errors; all others are the database's.
package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite" // also the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"livepatch"
)

//go:embed migrations
var migrations embed.FS

// Store is the database. Methods may be called from several goroutines.
type Store struct {
	// writer has one connection: SQLite has one writer at a time, and waiting for
	// it here is fairer than its busy handler.
	writer, reader *sql.DB
	now            func() time.Time
	catalogues     catalogueCache
	rollouts       rolloutCache

	mu sync.Mutex
	// seen are machines whose check-ins changed nothing since the last Flush.
	seen map[string]time.Time
}

// readers is how many queries may read at the same time.
const readers = 8

// OpenSQLite opens the database file at path, making it (mode 0600) where it is
// missing, and brings its tables up to date. now is the clock, time.Now outside of
// tests.
func OpenSQLite(ctx context.Context, path string, now func() time.Time) (*Store, error) {
	// SQLite would make the file by the umask; it holds hashes and host names.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s := &Store{now: now, seen: map[string]time.Time{}}
	s.catalogues.kept = map[livepatch.KernelTarget]keptCatalogue{}
	if s.writer, err = openPool(path, "_txlock=immediate&_pragma=synchronous(FULL)", 1); err != nil {
		return nil, err
	}
	if s.reader, err = openPool(path, "_pragma=query_only(1)", readers); err != nil {
		return nil, errors.Join(err, s.writer.Close())
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(damaged(err, path), s.writer.Close(), s.reader.Close())
	}
	return s, nil
}

// damaged says what to do about a file that SQLite cannot make sense of; every
// other error is itself.
func damaged(err error, path string) error {
	var broken *sqlite.Error
	if !errors.As(err, &broken) {
		return err
	}
	// The low byte is the primary code (sqlite.org/rescode.html).
	if code := broken.Code() & 0xff; code != sqlite3.SQLITE_CORRUPT && code != sqlite3.SQLITE_NOTADB {
		return err
	}
	return livepatch.Errorf(livepatch.CodeDisk, "the database %s is damaged; move it and its -wal and -shm files aside and put back the last backup, the rest of the data folder is not concerned: %w", path, err)
}

func openPool(path, options string, size int) (*sql.DB, error) {
	u := url.URL{Path: path}
	db, err := sql.Open("sqlite", "file:"+u.EscapedPath()+"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=foreign_keys(1)&"+options)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db, nil
}

func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations/sqlite")
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.writer, files, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("bring the database up to date: %w", err)
	}
	return nil
}

// Close flushes and closes the database.
func (s *Store) Close() error {
	err := s.Flush(context.Background())
	return errors.Join(err, s.reader.Close(), s.writer.Close())
}

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.reader.QueryRowContext(ctx, `SELECT 1`).Scan(&one); err != nil {
		return fmt.Errorf("ask the database: %w", err)
	}
	return nil
}

// write runs f in the one writing transaction; what f did is on the disk when
// write returns nil and undone when it does not.
func (s *Store) write(ctx context.Context, f func(*sql.Tx) error) error {
	return transact(ctx, s.writer, &sql.TxOptions{}, f)
}

// read runs f on one consistent state of the database.
func (s *Store) read(ctx context.Context, f func(*sql.Tx) error) error {
	return transact(ctx, s.reader, &sql.TxOptions{ReadOnly: true}, f)
}

func transact(ctx context.Context, db *sql.DB, opts *sql.TxOptions, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	if err := f(tx); err != nil {
		if undo := tx.Rollback(); undo != nil && !errors.Is(undo, sql.ErrTxDone) {
			return errors.Join(err, fmt.Errorf("roll back: %w", undo))
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// Hash is how a secret is stored: SHA-256 in hex. Secrets have 256 random bits,
// so nothing slower is needed.
func Hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// newID makes an id that sorts by time: 44 bits of milliseconds, 40 random bits.
func newID(prefix string, at time.Time) string {
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return fmt.Sprintf("%s-%011x%x", prefix, at.UnixMilli(), b)
}

// millis is the stored form of a time; the zero time is 0.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func timeOrNil(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := fromMillis(ms)
	return &t
}

// collect reads all rows with scan and closes them.
func collect[T any](rows *sql.Rows, err error, scan func(func(...any) error) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	items := []T{}
	for rows.Next() {
		item, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, rows.Err()
}
