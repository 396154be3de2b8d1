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
//	    waits for nobody and allocates nothing. A record is never changed once it
//	    is published: it is replaced.
//	P2  The position is published after the data: who sees At() >= s sees every
//	    effect of every event up to s (and possibly of later ones).
//	P3  Events are applied in order of their sequence without a hole. What a view
//	    has applied already it ignores; a hole, a broken history or an event that
//	    the key's life does not admit stops the view, for good, with the error.
//	P4  Applying an event costs the same however many keys there are. Growth is
//	    per shard (a 1024th of the table); a role or a keyspace re-resolves the
//	    grants that depend on it, and grants are shared between keys.
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
//
// Keys checks of each history that rev counts on, that the life admits the event
// (events.Key.Next, written once) and the first 88 bits of the hash chain:
// that is what fits into a 96-byte record. Directory checks the whole hash. Both
// carry the tree over the log, in their snapshots too: Expect compares its root with
// that of a floor, and Scrubber the whole log with it.
//
// Read on in this order: keys.go, key.go, grant.go, table.go, directory.go, names.go,
// follower.go, history.go, heads.go, memory.go, snapwrite.go, snapshot.go,
// directory_snapshot.go, directory_timers.go, marks.go, scrub.go, receive.go; then package snapshots.
package projections
