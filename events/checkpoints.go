package events

import "context"

// MaxCheckpoint is the most bytes of one signed checkpoint, the signatures included.
const MaxCheckpoint = 16 << 10

// StoredCheckpoint is a signed checkpoint as the log of checkpoints holds it.
type StoredCheckpoint struct {
	Text []byte // as it was signed: C2SP tlog-checkpoint
	Seq  Seq    // its place in the log of checkpoints; 0 = there is none
}

// Checkpoints is the log of the signed checkpoints of the lifecycle log. It keeps
// the newest ones. It is safe for concurrent use. eventlog implements it on
// JetStream, logtest in memory. What a checkpoint says is for package tree.
type Checkpoints interface {
	// Last returns the newest checkpoint, the zero value when there is none. It may be
	// behind a checkpoint that is being stored: only Append can tell.
	// Errors: ErrUnavailable.
	Last(ctx context.Context) (StoredCheckpoint, error)

	// Append stores a checkpoint if the newest one still stands at after (0: there is
	// none), and returns its place. On return it is durable. So of two signers that
	// have read the same checkpoint one succeeds.
	//
	// Errors: ErrConflict: another one was stored since, read it; ErrUnavailable or
	// ErrFull: nothing is stored; ErrUnknownOutcome: it may be stored or not, read Last;
	// anything else is the caller's fault.
	Append(ctx context.Context, after Seq, checkpoint []byte) (Seq, error)
}
