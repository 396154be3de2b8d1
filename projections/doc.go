// Package projections folds the events of the lifecycle log into views in
// memory: Keys, which verifiers answer from, and Directory, which control reads.
//
//	request ─> commands ─> events ─> log ─> PROJECTIONS ─> verifier ─> answer
//
// A view is nothing but its events: it can be thrown away and folded again, and
// it never decides. It does no I/O and owns no clock; what brings the events is
// Follow, what keeps a fold's result across restarts is a snapshot.
//
// Invariants (code that upholds one cites it by number):
//
//	P1  One goroutine applies; any number read. A reader of Keys takes no lock,
//	    waits for nobody and allocates nothing. Each event of a key takes effect with
//	    one store into its record, so whoever reads the record finds it as it was
//	    at one moment.
//	P2  The position is published after the data: who sees At() >= s sees every
//	    effect of every event up to s (and possibly of later ones).
//	P3  Events are applied in order of their sequence without a hole. What a view
//	    has applied already it ignores; a hole, a broken history or an event that
//	    the key's life does not admit stops the view, for good, with the error.
//	P4  Applying an event costs the same however many keys there are. Growth is
//	    per shard (a 1024th of an index) and per chunk. What a key may do is worked
//	    out when it is asked, from what it was given and the rules of one version: a
//	    definition that changes touches no key, and a role touches but the sets of
//	    roles that it is part of.
//	P5  A key is never forgotten: a revoked or expired key answers as such.
//	P6  A secret belongs to the first key that named its digest; a later key with
//	    the same digest is known by id only. So nobody takes over a secret, not
//	    even a revoked one, by creating it again.
//	P7  snapshot + events after it == all events from the start.
//	P8  A view that was restored says nothing before the log has shown the very
//	    event that the snapshot ends with. If the log shows another one, or a floor
//	    has another root than the view had at its size, the view was folded from
//	    another history: it stops for good and answers nothing any more. A snapshot
//	    holds what that is told by: a view that was restored knows its past as
//	    before.
//	P9  A position of another history than the view's is not held, however far the
//	    view is. It comes from a caller, so it stops nothing.
//	P10 The bytes of Export depend on nothing but the events up to its position: not on
//	    the process, or on where its view began. So two exports of one position are
//	    equal, or one of them is wrong. Whatever changes the bytes of the same events
//	    raises the version of snapshots.
//	P11 A definition, a role and a tenant's limit take effect with one store, and are
//	    counted after it. A reader who finds the count and the key's record after
//	    reading as they were before has read what was true at one moment
//	    (Keys.Still): never the rules of one definition with the grants of another.
//
// # The layout of Keys
//
// What a reader needs of a key is one cache line without a pointer, so the collector
// never looks at it, and a look-up misses the cache twice: for the index and for the
// record. The number of a key, its slot, says where everything else about it is; a
// verifier keeps its buckets under it.
//
//	record   64 bytes a key
//	  digest    24   the first 192 bits of the secret's digest
//	  id        16
//	  kind       4   the number of keyspace, type and environment; never another
//	  tenant     4   the number of the tenant; never another
//	  expires    8   \ what changes: an event stores one of the two
//	  state      8   / the number of its terms (32 bits), how often this word was
//	                   stored (29), the status (3)
//	rest     24 bytes a key, for the fold and snapshots only
//	  digest     8   the other 64 bits
//	  rev        4
//	  head      11   the first 88 bits of the hash of the key's last event
//	  turned     1   it was rotated
//	index     8 bytes an entry, 70 % full: by digest, by id, of tenants, of roles
//	  tag        4   31 bits of the hash
//	  number     4
//	terms    48 bytes, and 8 + 4 + an entry of an index; one for all keys that have
//	               the same scopes, roles, resources, allowlist and limit
//	Tenant   40 bytes and its id
//	role     96 bytes and its id
//
// A number of terms is used again when the last key has left them. A reader who has
// read them looks whether the record still names them; terms themselves never change,
// and stay for as long as somebody holds them.
//
// Scopes are numbered in each keyspace as long as anything names them (numbering.go), and
// a set of scopes is a bit set of those numbers. A version of the definition has for each
// scope the set of all that imply it, so a key holds a scope if that set and its own,
// or that of its roles, have a bit in common and its type's ceiling has the scope.
//
// Keys checks of each history that rev counts on, that the life admits the event
// (events.Key.Next, written once) and the first 88 bits of the hash chain:
// more of it would cost every key a word. Directory checks the whole hash. Both
// carry the tree over the log, in their snapshots too: Expect compares its root with
// that of a floor, and Scrubber the whole log with it.
//
// Read on in this order: keys.go, key.go, record.go, keyspace.go, numbering.go, terms.go, pool.go,
// arena.go, index.go, directory.go, table.go, names.go,
// follower.go, history.go, heads.go, memory.go, snapwrite.go, picture.go, snapshot.go,
// directory_snapshot.go, directory_timers.go, marks.go, saver.go, scrub.go, receive.go; then package snapshots.
package projections
