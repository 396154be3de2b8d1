// Package snapshots lets a new node start from another node's snapshot, where it would
// replay the whole log: the node that has one sends it, the new one fetches it and
// proves it.
//
//	node A: view ─> Sender ─HTTP─> Store.fetch ─> view of node B ─> Follow
//	                                   └─> Store.Run folds the log again, and compares
//
// What is proven, and when:
//
//	S1  Before anything of a snapshot is used or stored under its name: it came over
//	    whole (its SHA-256), it is of this log, and its head lies in the log. The event
//	    that it ends with is the log's, and its compact range, with the leaves after it
//	    that the log has, comes to the root of the floor (events.Floor), which only
//	    control can write. A floor is what a checkpoint is, without signatures: a
//	    verifier's account cannot read the signed ones.
//	S2  The root says which events there are, and nothing of the rows: a sender can pair
//	    the right head with a revoked key that is active. So the node folds the whole log
//	    again in the background, into a view of its own, and compares the export of
//	    that with what was fetched: they are equal byte for byte, or one is wrong
//	    (projections, P10). One that is wrong is named with its source. Its node denies
//	    everything from then on and stops, and begins the next time with the log.
//	S3  Until then the node answers on the sender's word. So an operator names the
//	    sources, each of which could answer wrongly itself, and an unproven view is
//	    never sent on, nor is the log held against it (projections.Scrubber).
//	S4  What is not proven yet stands in a file that is durable before the snapshot, so
//	    neither a crash nor a restart from a later snapshot of the same view forgets it.
//
// A source that is unreachable, slow, busy or wrong is left for the next. Where none is
// left the log is replayed: nothing is lost by it but time.
//
// The proof holds a second copy of the view while it runs.
package snapshots
