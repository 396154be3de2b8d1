// Package audit is the copy of the record in ClickHouse, and what may be asked of
// it: the trail (every lifecycle event), the ledger (every use of every key) and
// the counts of them.
//
// It is a copy: the log wins. The tables can be dropped and are filled again; a
// difference between the two is a fault of the copy, and Reconcile finds it.
// Nothing reads the copy to decide whether a key is allowed.
//
// Invariants:
//
//	A1  Every message of the log is in each table exactly once, whatever is killed
//	    and whenever. The offset lives in the table itself: max(seq), or
//	    max(max_seq) of a rollup. It is read after the fence, and a table only takes
//	    what lies after its own offset.
//	A2  One insert is one block is one partition, which ClickHouse stores whole or
//	    not at all; it holds whole messages of one month of the log's own time.
//	    That time is what the log says; it proves no order, seq does.
//	A3  An insert whose outcome is unknown is never repeated. The writer starts
//	    over at the fence, under a new epoch, and reads what happened.
//	A4  One writer per source: it holds a lease, a query that runs for as long as
//	    the writer's connection lives and whose id the server admits once. The
//	    fence then waits until no insert of an earlier writer runs.
//	A5  Nothing is skipped. An event that cannot be read stops the writer with a
//	    sentence. A message of the use stream that is no batch of its node, or
//	    accounts for a number again, is set aside: a row says why and holds its
//	    bytes, and the copy goes on. So does an epoch that its node did not end,
//	    and what the stream had already dropped. A log that ends before the copy
//	    does is refused.
//	A6  A copy belongs to one log: the log's identity is in the database, and a
//	    writer or endpoint of another log is refused.
//	A7  Every query carries the reader's scope as a value of its own type; there
//	    is no way to ask without one, and the zero Scope sees nothing.
//	A8  Reading the record is on the record first: a read that cannot be written
//	    down in the log is refused.
//	A9  Every use counts in every rollup, so the rollups add up to the raw rows.
//	    Uses of unknown keys that a node only counted are in use_suppressed, which
//	    the counts per hour and day add, and the blocks; a listing of uses says how many
//	    more there are.
//	A10 An answer about uses says what the ledger lacks in the time asked for.
//	A11 How an export ended is on the record before its last byte.
//	A12 The copy carries a head: the tree over all events that were copied stands on
//	    the last row of each insert. It is compared, at the start and from then on,
//	    with what the process has followed by itself, and that with the floor. So an
//	    event that is another one in the log now is noticed wherever it stands, and
//	    the copy stops.
//
// Delivery: a use is queryable about 0.2 s after its batch reached the stream, an
// event likewise; rollups follow within a second. While ClickHouse or the log is
// away the writer waits and then catches up exactly.
//
// What the user of the auditor's DSN needs on a real server: CREATE DATABASE once
// (or an existing database), all rights inside that database, SELECT on
// system.processes. Who only reads calls Attach, which changes nothing and needs
// SELECT alone. The tables live on one server: a DSN with several hosts is
// refused.
//
// Read writer.go (the idea), then query.go (what may be asked), then http.go.
package audit
