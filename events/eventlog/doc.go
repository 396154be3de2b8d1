// Package eventlog keeps the facts: events.Log, events.UseSink,
// events.UseSource, events.Timers and events.Leases on NATS JetStream. It is a client: package
// dial connects it, package server embeds the NATS server and makes the streams
// that package streams defines. Nothing of NATS shows in what it exports but
// connections.
//
//	open.go      Open: the clients over one transport
//	transport.go requests to the stream's leader and their answers
//	retry.go     the pause between two tries
//	health.go    leaving a server that is cut off from the others
//	loss.go      which answers prove that events are lost
//	publish.go   one publish, or an atomic batch, and its answer
//	outcome.go   what a publish came to: one table
//	read.go      bulk reading without a consumer, decoded on all processors
//	jetstream.go Lifecycle: Last, Load, LastOf
//	append.go    Append: a publish with an expectation, or an atomic batch
//	follow.go    Follow and Heartbeat
//	check.go     Check: every history of the log, for doctor and where a scrub finds a fault
//	leaves.go    Leaves: what the log's tree is made of, for the scrub
//	uses.go      Uses: the stream of uses
//	leaseplace.go  which subject holds the lease of a run
//	alive.go     whether a process holds a node's name
//	checkpoints.go  Checkpoints: the stream of signed checkpoints
//	timers.go    Timers: message schedules that wake the expirer, and their mark
//	due.go       Due: the keys that have become due
//	leases.go    Leases: the floor, and the leases of nodes
//
// # The streams
//
//	KT_LIFE   one subject per aggregate. Full = refuse (DiscardNew, MaxBytes); no age, no
//	          count, no rollup; DenyDelete, DenyPurge; atomic publish; direct get; no compression;
//	          published again as kt.rp.life.> after commit
//	KT_READ   who read the record: as KT_LIFE, apart from it, so that a flood of reads fills
//	          this stream and is refused, and takes no room of a revocation
//	KT_USE    one subject per verifier node. Full or old = forget the oldest
//	KT_TIMER  message schedules, and the mark: up to where in KT_LIFE they are set. They need
//	          rollup and purge, hence a stream of their own; all of it can be made again
//	KT_LEASE  the floor, up to where commands are acknowledged, and one record for each run
//	          of a node. The newest message of each subject; full = refuse, so that the floor
//	          is never forgotten. A node's record has a TTL of its life and an hour
//	KT_CHECKPOINT  the newest signed checkpoints of the tree over KT_LIFE, one subject; each
//	          append expects the one before
//
// A message of KT_LIFE and KT_READ is one CloudEvents document (structured mode of
// the NATS binding). Beside it stand headers of the transport only: Content-Type, and
// those of NATS, which change when a message is mirrored and are never hashed.
//
// # What an acknowledgement proves
//
// Append and Publish return when the message is fsynced: on a single server by
// that server, one fsync each (an atomic batch shares one); with replicas by a
// majority, each in the log of its raft group. JetStream's default is another:
// it acknowledges first and syncs within two minutes. There is no such setting
// per stream, so every server must have it (SyncAlways; sync_interval: always
// in deploy/nats/nats.conf), and server.CheckServers asks each whether it has.
//
// # Invariants
//
//	L1  Acknowledged means fsynced. No server of ours runs without SyncAlways.
//	L2  server.Init alone makes streams, with the admin account, which no running
//	    process uses. Open makes nothing; a log that is gone is refused, never
//	    replaced.
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
//	    not bear the marks of the stream it drops. After a lost connection, and
//	    at the head of every repair, it reads the event applied last again and
//	    compares it: the log may have been replaced by another history.
//	L7  A heartbeat (at, last) is true: the clock is read before the leader is
//	    asked, and a leader that has not heard a majority for 3 s is not believed
//	    (no other can be elected within 4 s). One answer never proves a loss: a
//	    new leader answers before it has applied what the one before it
//	    acknowledged. A stream with replicas has lost its end only when one leader
//	    that leads has shown the loss for 8 s.
//	L8  A verifier node has an account of its own on the server, which names the
//	    subjects that leave it: the node's own. So the server vouches for whose a
//	    batch of uses and a lease are, and what a node publishes, or aims a server's
//	    answer at, reaches no other node.
//	L9  A lease's record is stored only while the floor that it names is the newest:
//	    it expects the last sequence of the floor's one exact subject, and carries
//	    no Nats-Msg-Id, so that its acknowledgement speaks of this very write. A
//	    floor expects the one before it and is never lowered. Neither rests on a
//	    read: a deposed leader may answer one for as long as it is cut off, and
//	    commits nothing.
//	L10 What the server says of a stored message is taken from the last header of
//	    that name: the server appends to what the publisher wrote.
//	L11 Timers are set by atomic batches that move the mark, each from the newest mark:
//	    the mark expects the last sequence of its one exact subject. So the batches have
//	    one order, and what is lost with the stream is lost with its mark. Sequences of
//	    a stream that was made anew begin after those of the one before it.
//
// # Known limits
//
// The server limits a node's connections and subscriptions, not its messages: a flood
// of uses may push out uses of others that the auditor has not read yet, and a flood of
// leases (64 records of a node are kept) delays the writes of others while it lasts. A
// leader that is killed leaves the log without writes for 4 to 7 s; one that is stopped
// in order, for milliseconds. A server that is cut off from the others keeps its
// clients' connections and serves nothing through them: a client that knows other
// servers leaves it after 3 to 4 s without an answer, one that knows none waits for it.
// So --nats names all servers. A lost majority of disks
// loses what only they held: keep a mirror or backups (deploy's runbook), and
// pass Options.AtLeast what is known elsewhere.
package eventlog
