// Package checkpoint keeps the whole Merkle tree over the lifecycle log in a file,
// signs its head about once a second while the log grows, and serves checkpoints,
// tiles and entry bundles (C2SP tlog-checkpoint, tlog-tiles). It runs in control.
//
//	view ─> Tree: file of hashes ─> Publisher: sign, store, then serve
//
// It reads nothing but hashes, and decides about no key: when it stands still,
// keys are verified and changed all the same.
//
// Invariants (code that upholds one cites it by number):
//
//	C1  What the file holds is believed only where its root is that of the view, which
//	    has proved that the log is the one it was folded from.
//	C2  A head is signed only if the tree shows that it extends the newest stored
//	    checkpoint. If it does not, nothing is ever signed again: the log has forked.
//	C3  A checkpoint is stored by a compare-and-set on the one that it extends, and
//	    served only once it is stored. So of two signers, on whatever logs, the second
//	    to store must extend what the first has stored.
//	C4  Before a head is signed, the mark in the directory says that it will be: a
//	    signer that meets an older copy of the log, with the older copy's checkpoints,
//	    refuses it.
//	C5  Nothing is served beyond the newest checkpoint that the tree has confirmed.
package checkpoint
