package events

import "context"

// Appointments says which process leases the tokens of limits: the newest floor names it.
// It is part of the log of leases; whoever renews a lease learns of it (Leases.Renew).
type Appointments interface {
	// Appoint makes the newest floor name next in the place of was; the zero id is
	// nobody. It returns the floor that does, which is durable then: every lease that is
	// renewed from now on shows it, and each that names was was renewed before.
	// Errors: ErrNoFloor; a *StateError of class ErrConflict: the floor names another;
	// ErrUnavailable or ErrUnknownOutcome as of Leases.Raise.
	Appoint(ctx context.Context, was, next InstanceID) (Floor, error)
}

// LimitMail carries what nodes ask of the allocator of limits, and its answers. Nothing
// of it is durable, and any of it may be lost, late or repeated. What it carries is
// opaque here; package verifier/limits writes and reads it. eventlog implements it on
// NATS without JetStream, logtest in memory. It is safe for concurrent use.
type LimitMail interface {
	// AskLimits sends an ask of the node's to whoever hears them. It does not wait.
	AskLimits(node NodeID, ask []byte) error

	// HearLimits calls heard for each answer to the node until ctx ends, one at a time,
	// and returns ctx's error, or why it cannot listen.
	HearLimits(ctx context.Context, node NodeID, heard func(answer []byte)) error

	// ServeLimits calls asked for each ask of any node until ctx ends, one at a time, and
	// returns ctx's error, or why it cannot listen. The node is the one whose
	// credential sent the ask.
	ServeLimits(ctx context.Context, asked func(node NodeID, ask []byte)) error

	// AnswerLimits sends an answer to the node. It does not wait.
	AnswerLimits(node NodeID, answer []byte) error
}
