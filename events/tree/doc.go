// Package tree is the Merkle tree over a log: its entries and leaves, the compact
// range that a follower carries, proofs, signed checkpoints, and the tiles that
// publish the tree. It knows nothing of NATS or of the meaning of events: a leaf is
// made of a subject and the hash of a document.
//
// The tree is that of RFC 6962, section 2.1, with SHA-256, on
// golang.org/x/mod/sumdb/tlog. The texts are those of the C2SP documents
// tlog-checkpoint, tlog-cosignature, tlog-proof, tlog-tiles and signed-note
// (https://c2sp.org), so that other tools can verify what Keytrail publishes.
//
// Leaf i of a log is the event with sequence i+1 of its stream. A size is a number
// of leaves; an index is zero-based.
//
// Invariants:
//
//	T1  Two logs with the same subjects and documents in the same order have the
//	    same entries, leaves and root, whichever process computes them.
//	T2  Every encoding is canonical: a parser accepts only the bytes that the
//	    matching function writes. (Checkpoints may carry further signatures, and a
//	    key file may lack its last line feed.)
//	T3  A head names its log by the origin. Heads of two origins are never
//	    compared; such a check fails.
//	T4  A checkpoint is accepted only with a valid signature of each of the log's
//	    two keys.
//	T5  Sizes stay below MaxSize, so that no computation overflows.
package tree
