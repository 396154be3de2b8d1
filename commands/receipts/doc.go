// Package receipts proves that a change of a key holds everywhere: a receipt lists
// every run of every node, and why it does not answer any more as if the change had
// not been made.
//
//	command ─> log ─> floor ─> RECEIPT <─ records and answers of all nodes
//
// # The argument
//
// Let S be the sequence of the change's last event. The command is acknowledged once
// the floor holds S (events.Leases.Raise): let F be a floor with a size of at least
// S. A node allows a key only on a lease that it was granted, only once its view has
// reached the size of the floor that the lease stands on, and only while the lease's
// life, counted from before it was asked for, is not over (package verifier).
//
//   - A lease that stands on F or a later floor is no danger: its size is at least S,
//     so the view that answers on it holds the event.
//   - Every other lease was stored before F was, since its record was stored on the
//     condition that an older floor is the newest. So it was asked for before F was
//     stored: before a moment at which an observer knows F to stand.
//   - The list of records is read as of one moment with the floor at F or later. A run
//     that is not on it has stored its first record afterwards, on F or a later floor,
//     or its record was dropped, KeepLease past its life.
//
// So of each run on the list one of these makes the receipt true:
//
//	applied        its record, or an answer of this very run, says that its view holds S;
//	               a view never goes back. A newer record alone is no proof: the node
//	               may still answer on a former lease.
//	started_after  its first lease stands on F or a later floor, so all of them do
//	ended          its record says that it has stopped answering
//	lapsed         by this control's steady clock its life, and 1 % of it for the drift
//	               of two steady clocks, has passed since F was known to stand, or since
//	               its newest record on the list was first seen. A record names the
//	               longest life of all leases that the run may still answer on.
//
// A run of which none is shown is waiting, and the receipt is not complete. An
// unreadable record waits for events.MaxLeaseLife.
//
// # What is assumed
//
// Steady clocks of two machines measure one time within 1 %. A machine that was
// suspended shows it by its steady or its wall clock (a wall clock that is set back in
// the very step of a suspension hides it; see verifier/elapsed.go). The clocks of the log's servers
// do not jump ahead by more than events.KeepLease. A write of a lease that is delayed
// until a newer one of the same run is stored does not name a shorter life than that.
// A decision that was made before the view took the event is looked at again before
// it is told; an answer that is being written to its caller at that moment, or is on
// the wire, is older than the receipt.
// A verifier's credential writes the records and answers of its own node alone, by the
// log's accounts: who holds a stolen one can make a receipt wrong about that node only.
//
// Read on in this order: observer.go, issuer.go, note.go, metrics.go.
package receipts
