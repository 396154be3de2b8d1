// Package engine runs the local ClickHouse engine: the audit store of people
// who have no ClickHouse server.
//
// It is libchdb, the ClickHouse engine as a shared library, opened in a child
// process of this same binary and listening on two loopback ports. Nothing has
// to be installed but npm, which fetches the library once into the user's
// cache; a `clickhouse` binary on PATH serves where that is not possible.
//
// It is not a ClickHouse server for production: it has no Keeper, no replicas,
// no users made by SQL and no TLS, and it trusts the other programs of this
// machine not to take over its port while it is down. Production gives Keytrail
// the DSN of a real server or cluster in KEYTRAIL_CLICKHOUSE, and then nothing
// of this package runs. It is not the audit store either: it knows no table.
//
// Binaries with the build tag noengine, and those for systems other than Linux
// on amd64 and arm64, carry no engine: there Start says so and names the way out.
//
// Invariants:
//
//  1. Only loopback listens, and only the one user with the password kept in
//     <Dir>/password (mode 0600) can log in. The engine's own `default` user,
//     which cannot have a password, may have one session; the engine takes it
//     before it opens a port and keeps it until it ends. Without the password
//     the ports answer GET /ping, and reject everything else.
//  2. The password is in no command line, no environment, no log line and no
//     error. DSN is the only thing that gives it out.
//  3. The library that runs is the pinned one: npm checks the download against
//     the lock file embedded here, and the file itself is hashed once before it
//     enters the cache. (KEYTRAIL_CHDB_LIB is the user's own file and own care.)
//  4. The cache holds a whole library or none: it is made beside and renamed.
//  5. One process owns a directory. A second Start on it is refused.
//  6. The engine does not outlive its parent, however the parent ends.
//  7. Kill is safe at any time: ClickHouse's parts appear by rename, so a killed
//     engine starts again with every acknowledged insert.
//  8. The address does not change while an Engine lives, restarts included.
//
// Read engine.go (life), then process.go (one child), then library.go (where the
// library comes from).
package engine
