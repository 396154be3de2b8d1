// Package embed runs a verifier node inside a program: it follows the log, keeps its
// view, its lease and its ledger, and decides in the program's own memory.
//
//	log ─> EMBED (follow, lease, ledger) ─> verifier.Node ─> Verify, Protect
//	           └──> uses (the ledger) ─> audit
//
// Every process of Keytrail that verifies keys is built on it, so an embedded verifier
// decides, records and stops as `keytrail verifier` does. What the process trusts and
// promises stands in the package verifier.
//
// # Invariants
//
//	N1  A verifier follows all of the log, and holds all keyspaces. Its lease says up
//	    to which head of the tree it has applied the log, and each event is a leaf of
//	    the tree, so none may be left out.
//	N2  It answers nothing before Ready, after Close has begun, and after it has ended by
//	    itself: each decision is verifier_stale then.
//	N3  Close stores the uses that it holds and then gives the lease back, so a receipt
//	    does not wait for a verifier that has stopped. Snapshots of the view come last, with
//	    the time that is left: they only make the next start faster.
//	N4  It links neither a NATS server nor ClickHouse nor gRPC (a test in cmd holds the
//	    list of modules). Envoy's endpoint is the package verifier/extauthz.
//
// Read on in this order: config.go, embed.go.
package embed
