// Package verifier is the answer: one key in, one decision out, from memory
// only, and every decision on the record.
//
//	projections ─> VERIFIER ─> answer
//	                  └──> uses (the ledger) ─> audit
//
// It writes no lifecycle event, keeps no copy of a key and caches no decision:
// the view that projections folds is all it knows.
//
// # The order of checks
//
// The order is part of the API. A decision names the first check that fails, so
// a reason also says that every check above it passed. The last five are the
// keyspace's to order (checks: [state, address, scope, resource, limit] is the
// default); the first are fixed.
//
//	https_required        403  the request came over plain HTTP and the keyspace is HTTPS only; the key is looked
//	                           up all the same, so that the record names whose secret went over the wire in the clear
//	verifier_stale        503  the node cannot prove that its view is recent enough (freshness.go)
//	key_missing           401  no secret
//	key_malformed         401  given twice; or with the form of a key type of the keyspace named and not its checksum;
//	                           or no key has it and it is not 16 to 256 visible ASCII characters, or has the form of no
//	                           key type of the keyspace named
//	key_unknown           401  no key of the keyspace named has it; without a keyspace, none of any but the built-in one
//
//	state     key_revoked           401
//	          key_expired           401  from the expiry's own millisecond on, whatever the log says yet
//	          key_disabled          401
//	address   address_not_allowed   403  the key has an allowlist and the client's address is not on it, or not known
//	scope     scope_missing         403  neither held, nor implied, nor in a role
//	resource  resource_not_allowed  403  not reached, or the scope wants a kind of resource that the request does not name
//	limit     rate_limited          429  the key's bucket or its tenant's holds too few tokens; the only check with a memory
//
//	ok                    200
//
// The statuses are the defaults; a keyspace may answer with its own (errors.answers).
//
// A key of another keyspace is unknown here, like a secret that nobody has:
// nothing is disclosed about it. A question at /v1/verify that names no keyspace
// means every keyspace of the operator's products. It does not mean the built-in
// one: an application that forgot to name its keyspace must not let operators'
// keys in. The form is asked about only after the look-up,
// so that an imported key may keep the form that its first issuer gave it. A
// checksum is asked before, as long as every key of the keyspace has one: from the
// first import on, or when a type was there before its checksum, it is asked
// after the look-up too.
//
// # Limits
//
// A request takes its tokens from the key's bucket and from its tenant's, from
// both or from none. Every answer about a known key tells where the tighter one
// stands: the one that refused (the one that holds back longest, if both did), or
// the one with the fewest tokens left. A refusal by a check before the limit takes
// nothing. Where the keyspace asks the limit before other checks, a refusal by
// those has cost the tokens: so guesses at scopes, say, are limited too.
//
// # What allowed proves
//
// At the decision's time and at its position in the log the key existed in the
// keyspace named, was active, and admitted the address, scope and resource, and
// neither its limit nor its tenant's was exceeded at this node. Whatever had been
// acknowledged before the node asked for the lease that it answers on was in its
// view, and by the node's own clocks that was not longer ago than the keyspace's
// bound, or the node's ceiling, when the answer was given. With a ledger in mode
// sync it also proves that this very use is durable.
//
// # Fail closed
//
//	the node has never caught up with the log,      verifier_stale
//	or its view has not reached its lease
//	the view is of another history than a floor     verifier_stale, whatever the keyspace says, for good
//	the lease was asked for longer ago than the     verifier_stale; where the keyspace says on_stale: allow, only
//	keyspace's bound                                past the life of the lease
//	the answer took until that bound                verifier_stale; the decision is recorded as it was made
//	the view took a denial while an allowance was   verifier_stale; the decision is recorded as it was made
//	on its way
//	min_position is not reached within WaitMax      verifier_stale
//	min_position is of another log, or history      422 over HTTP; verifier_stale in Decide
//	no epoch of the ledger is open                  verifier_stale, not recorded: no key is allowed
//	ledger sync, and the use is not durable in time 503 to the caller; the decision is recorded as it was made
//	ledger async, and its buffer is full            answered; the number becomes part of a gap record
//	the key is not known, and the budget is used up refused; the decision is counted, by block of addresses, keyspace, reason
//	a name that the keyspace does not declare       denied; at a gateway's endpoint with 503, and told to the operator
//	the client's address cannot be told             denied where the key has an allowlist: no peer, a trusted proxy
//	                                                that names no client, headers that disagree or cannot be read
//	the keyspace has a check of a later release     verifier_stale
//
// # Invariants
//
//	V1  Verify is pure but for the buckets of the key and its tenant, which are the
//	    node's own and outlive all that changes: the same view, request and time
//	    give the same decision, under one version of the definition. It does no
//	    I/O, reads no clock, allocates nothing.
//	V2  No decision is remembered. What changes a key changes the next decision.
//	V3  A token is taken by a request that passed every check before the limit,
//	    exactly once, and from both buckets or from neither. No bucket admits more
//	    than its burst and its rate, however many ask at once.
//	V4  The secret is hashed and forgotten: it is in no decision, use, log line,
//	    error or metric.
//	V5  A decision is one that the view gave at one moment: it never pairs a new
//	    definition with what a key or a role was given before, or the other way.
//	    Nobody waits for that: who was overtaken by a change reads again.
//	G1  A gateway's endpoints (authorize.go, extauthz) and Protect (program.go) give one
//	    answer, Node.Answer's, and differ in how they write it down.
//	G2  The keyspace and the demand are the gateway's words. The client's are its
//	    credential, and behind trusted proxies where it comes from and by what
//	    scheme; what cannot be told denies. A name in the gateway's words that is
//	    not defined is the operator's mistake: it lets no key through, is no
//	    refusal of the key, and is counted and logged (fault.go).
//	G3  An answer that allows says every identity field, so a gateway that copies
//	    them leaves nothing that a client forged. A refusal says none. They fit into
//	    4 KiB: a list of scopes that is too long is left out whole, and said to be.
//	G4  No answer of 2xx refuses, and no refusal waits for a body of the client's.
//	L1  Every decision of an open epoch is accounted for by one number; the numbers
//	    are 1..n without a hole. A use takes one number, a gap or a tally as many as it
//	    counts: so the counts of all messages of an epoch add up to n.
//	L2  An epoch on the stream reads: open; uses, gaps and counts of suppressed uses
//	    that account for each number once, in order; then close, or a gap of
//	    unknown length written by the next start.
//	L3  A loss is a gap record that says how many, never silence.
//	L4  One message is in flight at a time, under one id until it is confirmed, and
//	    it is stored only after the message that this process knows to be the
//	    node's last. So that one says where the node's record ends.
//	L5  An epoch is greater than every epoch of the node before it.
//	L6  Uses of keys that are not known are recorded one by one within a budget per
//	    second, node and block of addresses: the first ones. The others are counted
//	    exactly, by second, block, keyspace and reason; the blocks and keyspaces that
//	    are named in a second are bounded, and the rest is counted by reason. A record
//	    stands for one use and is in no count. None takes the number, the record or
//	    the place in the buffer of a known key's use, of which none is ever left out.
//	L7  Two processes with one name never write into one epoch: the second ends the
//	    epoch of the first with a gap from the first number that is not stored, and
//	    the next append of the first fails. It then answers nothing more.
//
//	L8  The epoch of a node that never returns is ended by a Closer, once the
//	    node's lease has run out: as L7, with a count of what its lease said that
//	    it had numbered.
//	L9  A decision on a known key takes its number and writes its use without a lock,
//	    but for one in BatchUses, which brings the next slab. One that is paused in
//	    the middle delays the record from its number on. It holds nobody up, and
//	    leaves no hole (ledger_slab.go).
//
// Read on in this order: verify.go, limit.go, buckets.go, lease.go, prompts.go, freshness.go, node.go, ledger.go,
// ledger_slab.go, ledger_queue.go, ledger_begin.go, ledger_run.go, closer.go, unknown.go, unknown_second.go, gateway.go, client.go, fault.go, grpc.go, program.go.
// Package verifier/embed runs a node.
package verifier
