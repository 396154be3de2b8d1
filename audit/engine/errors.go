package engine

import (
	"errors"
	"regexp"
	"strings"
)

var (
	// ErrNoEngine: this binary carries no local engine (build tag noengine, or a
	// system it does not run on). Retrying is pointless; give it a server.
	ErrNoEngine = errors.New("no local ClickHouse engine in this build")

	// ErrDirInUse: another process runs an engine on Config.Dir.
	ErrDirInUse = errors.New("engine directory is in use")

	// ErrUnavailable: neither the library nor a clickhouse binary could be had.
	// The error that wraps it names the three ways out.
	ErrUnavailable = errors.New("no local ClickHouse engine available")

	// ErrIntegrity: what was fetched is not what this version of Keytrail pins.
	ErrIntegrity = errors.New("fetched engine is not the pinned one")

	// ErrVersion: the engine is older than MinVersion.
	ErrVersion = errors.New("ClickHouse is too old")

	// ErrClosed: the Engine has been closed.
	ErrClosed = errors.New("engine is closed")

	errPortInUse = errors.New("port is in use")
)

// waysOut ends every error that leaves the user without an engine.
const waysOut = "do one of: set KEYTRAIL_CLICKHOUSE to the DSN of a ClickHouse server; " +
	"install npm, so that Keytrail can fetch its local engine; put a clickhouse binary on PATH"

var secretParam = regexp.MustCompile(`(?i)([?&][^=&]*(?:password|token|secret)[^=&]*=)[^&]*`)

// Redact returns the DSN with its password, and any parameter that may hold one,
// replaced by xxxxx: fit for logs and errors. It works on any text, DSN or not,
// and rather hides too much than too little; several hosts are fine.
func Redact(dsn string) string {
	// Not net/url: it refuses lists of hosts, and its errors quote their input.
	if start, at := strings.Index(dsn, "://"), strings.LastIndexByte(dsn, '@'); start >= 0 && at > start {
		user, _, hasPassword := strings.Cut(dsn[start+3:at], ":")
		if hasPassword {
			user += ":xxxxx"
		}
		dsn = dsn[:start+3] + user + dsn[at:]
	}
	return secretParam.ReplaceAllString(dsn, "${1}xxxxx")
}
