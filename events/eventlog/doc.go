// Package eventlog keeps the facts: events.Log, events.UseSink,
// events.UseSource and events.Timers on NATS JetStream, and the embedded server
// that a single machine needs no other for. It is the only package beside cmd
// that speaks NATS; nothing of it shows in what it exports but connections.
//
//	server.go    the embedded server; accounts.conf: who may do what
//	stream.go    the streams, their settings, Init
//	jetstream.go Open, reading through the leader, Load
//	append.go    Append: a publish with an expectation, or an atomic batch
//	read.go      bulk reading without a consumer, decoded on all processors
//	follow.go    Follow and Heartbeat
//	check.go     Check: the whole log, at start
//	uses.go      the stream of uses
//	timers.go    message schedules that wake the expirer
//
// # The streams
//
//	KT_LIFE   one subject per aggregate. Full = refuse (DiscardNew, MaxBytes); no age, no
//	          count, no rollup; DenyDelete, DenyPurge; atomic publish; direct get; no compression;
//	          published again as kt.rp.life.> after commit
//	KT_USE    one subject per verifier node. Full or old = forget the oldest
//	KT_TIMER  message schedules. They need rollup and purge, hence a stream of their own;
//	          all of it can be made again from KT_LIFE
//
// # What an acknowledgement proves
//
// Append and Publish return when the message is fsynced: on a single server by
// that server, one fsync each (an atomic batch shares one); with replicas by a
// majority, each in the log of its raft group. JetStream's default is another:
// it acknowledges first and syncs within two minutes. There is no such setting
// per stream, so every server must have it (SyncAlways; sync_interval: always
// in deploy/nats/nats.conf), and CheckServers asks each whether it has.
//
// # Invariants
//
//	L1  Acknowledged means fsynced. No server of ours runs without SyncAlways.
//	L2  Init alone makes streams, as a user that nobody is at run time. Open
//	    makes nothing; a log that is gone is refused, never replaced.
//	L3  An event is stored at most once: each append expects the last sequence
//	    of its aggregate's one subject, and carries its id as Nats-Msg-Id. The
//	    same append may therefore be sent any number of times, and what an
//	    earlier one did is read from the place where it expected to stand.
//	    (A filter over several subjects is no substitute: on a cluster two
//	    different filters let both of two conflicting writes in.)
//	L4  What must not be stale is read through the stream's leader; other
//	    replicas only fill in what the leader has named.
//	L5  A log is used from event 1 on or not at all: gaps, unreadable events,
//	    broken chains, a foreign identity and a lost end are *CorruptError at
//	    start. JetStream drops damaged messages, reuses their sequences and says
//	    nothing.
//	L6  A follower applies event n+1 after event n and nothing else, whatever
//	    comes over the wire; what is missing it reads from the stream. What does
//	    not bear the marks of the stream it drops.
//	L7  A heartbeat (at, last) is true: the clock is read before the leader is
//	    asked, and a leader that has not heard a majority for 3 s is not believed
//	    (no other can be elected within 4 s).
//	L8  A verifier's account can ask for no answer whose text it could choose, so
//	    that it has nothing to aim at another verifier.
//
// # Known limits
//
// The users of one account are not told apart: a verifier could publish uses in
// another's name. A leader that is killed leaves the log without writes for 4 to
// 7 s; one that is stopped in order, for milliseconds. A lost majority of disks
// loses what only they held: keep a mirror or backups (deploy's runbook), and
// pass Options.AtLeast what is known elsewhere.
package eventlog
