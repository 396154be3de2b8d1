package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/pressly/goose/v3"

	"github.com/keytrail/keytrail/events"
	schema "github.com/keytrail/keytrail/schemas/clickhouse"
)

// ErrNotMigrated says that the database does not have the tables of this release
// yet. The same Attach succeeds once the auditor of this release has run.
var ErrNotMigrated = errors.New("start the auditor of this release: it makes the tables")

// StoreConfig says which database holds the copy.
type StoreConfig struct {
	// DSN is clickhouse://user:password@host:9000/database, optionally with
	// ?secure=true. One host, native protocol. It is never logged.
	DSN string
	// Logger receives what is worth telling an operator. Default: nobody is told.
	Logger *slog.Logger
}

// Store is the database of the copy. It is safe for concurrent use. It prints as
// host and database, never with its password.
type Store struct {
	conn     driver.Conn
	options  clickhouse.Options
	database string
	logger   *slog.Logger
	log      atomic.Pointer[events.LogID] // set once bound

	pause func(context.Context, time.Duration) error // between looks at the lease; replaced by tests
}

var databaseRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

// migrationsTable is where goose notes which steps a database has taken.
const migrationsTable = "keytrail_migrations"

// Open connects, creates the database if it does not exist, and brings its tables
// to this release's shape; two processes that do so at once take turns. It is for
// who writes the copy: everybody else calls Attach. Errors: ErrUnavailable; others
// are sentences for the operator.
func Open(ctx context.Context, cfg StoreConfig) (*Store, error) {
	return open(ctx, cfg, func(s *Store) error {
		if err := s.createDatabase(ctx); err != nil {
			return err
		}
		return s.migrate(ctx)
	})
}

// Attach connects to a database that has the tables of this release, and changes
// nothing in it. Errors: ErrUnavailable; ErrNotMigrated; others are sentences for
// the operator.
func Attach(ctx context.Context, cfg StoreConfig) (*Store, error) {
	return open(ctx, cfg, func(s *Store) error {
		err := s.try(ctx, s.database, "SELECT 1")
		if code(err) == codeUnknownDatabase {
			return fmt.Errorf("ClickHouse has no database %s: %w", s, ErrNotMigrated)
		}
		if err != nil {
			return s.refusal(ctx, err)
		}
		have, want, err := s.versions(ctx)
		if err == nil && have < want {
			err = fmt.Errorf("database %s is at step %d of %d: %w", s, have, want, ErrNotMigrated)
		}
		return err
	})
}

// open connects and makes the store what prepare insists on.
func open(ctx context.Context, cfg StoreConfig, prepare func(*Store) error) (*Store, error) {
	options, err := parseDSN(cfg.DSN)
	if err != nil {
		return nil, err
	}
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{options: *options, database: options.Auth.Database, logger: logger, pause: pause}
	if s.conn, err = clickhouse.Open(options); err != nil { // it does not dial yet
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	if err := prepare(s); err != nil {
		return nil, errors.Join(err, s.conn.Close())
	}
	return s, nil
}

// parseDSN never repeats the DSN in an error: it holds a password.
func parseDSN(dsn string) (*clickhouse.Options, error) {
	const want = "want clickhouse://user:password@host:9000/database"
	o, err := clickhouse.ParseDSN(dsn)
	switch {
	case err != nil:
		return nil, errors.New("the ClickHouse DSN cannot be read: " + want)
	case o.Protocol != clickhouse.Native:
		return nil, errors.New("the ClickHouse DSN names the HTTP protocol: " + want)
	case len(o.Addr) != 1:
		return nil, fmt.Errorf("the ClickHouse DSN names %d hosts: the tables live on one server; %s", len(o.Addr), want)
	case !databaseRE.MatchString(o.Auth.Database):
		return nil, errors.New("the ClickHouse DSN names no database of letters, digits and '_': " + want)
	}
	o.MaxOpenConns, o.MaxIdleConns = 16, 4
	o.DialTimeout = 5 * time.Second
	o.ReadTimeout = time.Minute
	o.Compression = nil
	return o, nil
}

// try runs one statement in the database of the name, on a connection of its own.
func (s *Store) try(ctx context.Context, database, sql string) error {
	o := s.options
	o.Auth.Database = database
	conn, err := clickhouse.Open(&o)
	if err != nil {
		return err
	}
	return errors.Join(conn.Exec(ctx, sql), conn.Close())
}

// refusal says why ClickHouse does not let this process in.
func (s *Store) refusal(ctx context.Context, err error) error {
	if code(err) == codeAuthentication {
		return fmt.Errorf("ClickHouse at %s refuses the user or the password of the DSN", s) // its own text names the user
	}
	return s.fault(ctx, "connect to ClickHouse", err)
}

// createDatabase makes sure that the database exists. The first try asks for
// nothing that an operator who made it by hand would have to grant.
func (s *Store) createDatabase(ctx context.Context) error {
	err := s.try(ctx, s.database, "SELECT 1")
	if code(err) == codeUnknownDatabase {
		err = s.try(ctx, "default", "CREATE DATABASE IF NOT EXISTS `"+s.database+"`")
	}
	return s.refusal(ctx, err)
}

// migrate takes the steps that the database has not taken yet. The lease keeps a
// second process out meanwhile; its turn then finds nothing to do.
func (s *Store) migrate(ctx context.Context) error {
	have, want, err := s.versions(ctx)
	if err != nil || have == want {
		return err
	}
	o := s.options
	db := clickhouse.OpenDB(&o)
	defer db.Close()
	p, err := goose.NewProvider(goose.DialectClickHouse, db, schema.Migrations,
		goose.WithTableName(migrationsTable), goose.WithDisableGlobalRegistry(true), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	return s.withLease(ctx, "migrate", func(ctx context.Context) error {
		// crash here: each step is idempotent and noted after it is taken.
		done, err := p.Up(ctx)
		for _, r := range done {
			s.logger.InfoContext(ctx, "audit tables changed", "step", r.Source.Version, "took", r.Duration)
		}
		return s.fault(ctx, "bring the tables to this release's shape", err)
	})
}

// versions returns the last step that the database has taken, 0 for none, and the
// last one that there is.
func (s *Store) versions(ctx context.Context) (have, want int64, err error) {
	files, err := schema.Migrations.ReadDir(".")
	if err != nil {
		return 0, 0, fmt.Errorf("read the migrations: %w", err)
	}
	for _, f := range files {
		if v, err := goose.NumericComponent(f.Name()); err == nil {
			want = max(want, v)
		}
	}
	var exists uint8
	err = s.conn.QueryRow(ctx, "EXISTS TABLE "+migrationsTable).Scan(&exists)
	if err == nil && exists == 1 {
		err = s.conn.QueryRow(ctx, "SELECT max(version_id) FROM "+migrationsTable).Scan(&have)
	}
	if err != nil {
		return 0, 0, s.fault(ctx, "read which migrations the database has", err)
	}
	if have > want {
		return 0, 0, fmt.Errorf("database %s is at step %d, this release knows %d: it was used by a newer Keytrail; upgrade this process", s, have, want)
	}
	return have, want, nil
}

// Close closes the connections.
func (s *Store) Close() error { return s.conn.Close() }

// String names the server and the database, without user and password.
func (s *Store) String() string { return s.options.Addr[0] + "/" + s.database }

// GoString is String: %#v would print the options.
func (s *Store) GoString() string { return s.String() }

// LogValue is String.
func (s *Store) LogValue() slog.Value { return slog.StringValue(s.String()) }

// StopError says that the copy cannot go on and no retry mends it.
type StopError struct{ Reason string }

func (e *StopError) Error() string { return e.Reason }

func stop(format string, args ...any) error { return &StopError{fmt.Sprintf(format, args...)} }

// bind makes the database the copy of one log, or checks that it is (A6).
func (s *Store) bind(ctx context.Context, id events.LogID) error {
	if bound := s.log.Load(); bound != nil && *bound == id {
		return nil
	}
	have, err := s.identities(ctx)
	if err == nil && len(have) == 0 {
		// crash here, or two at once: the row is the same, or the check below fails.
		err = s.fault(ctx, "record the log's identity", s.conn.Exec(ctx,
			"INSERT INTO log_identity (id, since) VALUES ({id:String}, now64(3))", clickhouse.Named("id", id.String())))
		if err == nil {
			have, err = s.identities(ctx)
		}
	}
	if err != nil {
		return err
	}
	return s.checkIdentity(id, have)
}

// CheckLog reports whether the database may be the copy of the log: it is, or
// nobody has written to it yet. A copy of another log is a *StopError.
func (s *Store) CheckLog(ctx context.Context, id events.LogID) error {
	if bound := s.log.Load(); bound != nil && *bound == id {
		return nil
	}
	have, err := s.identities(ctx)
	if err != nil || len(have) == 0 {
		return err
	}
	return s.checkIdentity(id, have)
}

func (s *Store) checkIdentity(id events.LogID, have []string) error {
	if len(have) != 1 || have[0] != id.String() {
		return stop("database %s is the copy of log %v, not of log %s: name another database, or drop this one to fill it from this log", s, have, id)
	}
	s.log.Store(&id)
	return nil
}

func (s *Store) identities(ctx context.Context) ([]string, error) {
	var ids []string
	if err := s.conn.QueryRow(ctx, "SELECT groupUniqArray(id) FROM log_identity").Scan(&ids); err != nil {
		return nil, s.fault(ctx, "read which log the database is a copy of", err)
	}
	slices.Sort(ids)
	return ids, nil
}
