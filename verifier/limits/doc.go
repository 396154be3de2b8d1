// Package limits makes the limits of a keyspace hold for all verifier nodes together. A
// bucket has one allocator; a node holds leases of its tokens, and spends them without
// asking anybody. Client is the node's side, Allocator the other one; Service elects the
// allocator and runs it.
//
//	request ──> Client.Take ──(tokens in hand)──> allowed, in nanoseconds
//	                │ none
//	                └──> ask ──> Allocator ──> answer: tokens, until when, and where the whole bucket stands
//
// # Claim
//
// In every window of t milliseconds, by the allocator's clock, all nodes together admit
// at most burst + rate × t of one bucket, whatever fails. The grain is a millisecond, as
// in package verifier.
//
// # Rules
//
//	R1  A token leaves the bucket when it is leased. An unspent one returns only by a
//	    message that reaches the allocator before the lease's end.
//	R2  Refill stops while level + leased = burst. What is leased counts until the node
//	    has said that it is spent or given back, or until its lease is over.
//	R3  A node counts the life of a lease from before it asked. The allocator counts it
//	    from when it reads the ask, which is later, and 1 % longer.
//	R4  One allocator at a time: it answers for at most Authority after it began to prove
//	    that the newest floor names it. A new one waits for Authority + Life and 1 % after
//	    its appointment, and then takes every bucket for empty, but those of keys that
//	    were created after its appointment. If the floor named nobody before, no token was
//	    ever leased: every bucket is full, and there is nothing to wait for.
//	R5  An allocator that stops in order writes its account down after its last answer,
//	    with all that it had leased counted as spent. Who is appointed in its place, and has
//	    the account, goes on with it at once; nothing is refilled before the leases of the
//	    one before are over.
//
// # Argument
//
// Let P be level + leased, as the allocator counts it; the bucket's debt, owed, is
// burst − P. What the nodes may still spend of what was leased is never more than the
// allocator counts (R1, R3, and A2 of DESIGN.md, "One lease": clocks differ in rate by at
// most 0.1 %), so at any instant s the nodes can admit at most P(s) without a further
// refill. P never exceeds burst (R2), and grows by refill alone, at the rate. So what is
// admitted from s on until e is at most P(s) + rate × (e−s) ≤ burst + rate × t. Over a
// change of the allocator: what the old one leased is over before the new one begins (R4,
// A1, A2), and the new one begins with P = 0. A key that was created after the
// appointment was never served by the old one, which serves only keys that the floor it
// has proved includes, and that floor was committed before the appointment. With an
// account (R5) it begins with the P of the old one less what nodes hold, and they can
// still spend that: together no more than the old P, since P only grows by refill, which
// begins again when nothing is held any more. An account names its allocator, and the
// appointment is made in the place of that one alone, so it is used once.
//
// Messages may be lost, repeated, late or out of order: each ask is numbered, says what
// the node holds (not what changed), and names the answer by which it holds it. An
// allocator takes each number once, a node only the answer to the ask that is in flight.
//
// # What is not promised
//
// A refusal may be wrong: tokens that others hold, or that a node took to its grave, are
// missing here for at most the life of a lease. A node with a stolen credential can hold
// tokens back, and spend what it does not hold.
package limits

import "time"

// The times of the protocol.
const (
	// Life is for how long after it asked a node may spend the tokens of a lease.
	Life = time.Second
	// Authority is for how long after it began to prove its appointment an allocator
	// answers.
	Authority = 2 * time.Second
	// AnswerWait is how long a node waits for an answer before the allocator counts as
	// away.
	AnswerWait = 250 * time.Millisecond
)

// lifeAtAllocator is how long the allocator counts a lease after it answered, and
// takeover how long a new allocator waits (R3, R4).
const (
	lifeAtAllocator = Life + Life/100
	takeover        = Authority + Life + (Authority+Life)/100
)
