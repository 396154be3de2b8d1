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
// regime's to order (checks: [state, address, scope, resource, limit] is the
// default); the first are fixed.
//
//	https_required        403  the request came over plain HTTP and the keyspace is HTTPS only; the key is looked
//	                           up all the same, so that the record names whose secret went over the wire in the clear
//	verifier_stale        503  the node cannot prove that its view is recent enough (freshness.go)
//	key_missing           401  no secret
//	key_malformed         401  not 16 to 256 visible ASCII characters, or given twice; or with the form of a key type
//	                           of the keyspace named and not its checksum; or no key has it and it has the form of
//	                           no key type of the keyspace named
//	key_unknown           401  no key of the keyspace named has it; without a keyspace, no key at all
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
// The statuses are the defaults; a regime may answer with its own (errors.answers).
//
// A key of another keyspace is unknown here, like a secret that nobody has:
// nothing is disclosed about it. The form is asked about only after the look-up,
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
// nothing. Where the regime asks the limit before other checks, a refusal by
// those has cost the tokens: so guesses at scopes, say, are limited too.
//
// # What allowed proves
//
// At the decision's time and at its position in the log the key existed in the
// keyspace named, was active, and admitted the address, scope and resource, and
// neither its limit nor its tenant's was exceeded at this node; the node had heard from the log within the staleness bound. With a ledger in mode
// sync it also proves that this very use is durable.
//
// # Fail closed
//
//	the node has never caught up with the log       verifier_stale
//	the log was not heard of within the bound       verifier_stale; ok only where the keyspace says on_stale: allow
//	min_position is not reached within WaitMax      verifier_stale
//	min_position is of another log                  422 at a door; verifier_stale in Decide
//	no epoch of the ledger is open                  verifier_stale, not recorded: no key is allowed
//	ledger sync, and the use is not durable in time 503 to the caller; the decision is recorded as it was made
//	ledger async, and its buffer is full            answered; the number becomes part of a gap record
//	the client's address cannot be told             denied where the key has an allowlist
//	the regime has a check of a later release       verifier_stale
//
// # Invariants
//
//	V1  Verify is pure but for the buckets of the key and its tenant: the same
//	    view, request and time give the same decision, under one version of the
//	    regime. It does no I/O, reads no clock, allocates nothing.
//	V2  No decision is remembered. What changes a key changes the next decision.
//	V3  A token is taken by a request that passed every check before the limit,
//	    exactly once, and from both buckets or from neither. No bucket admits more
//	    than its burst and its rate, however many ask at once.
//	V4  The secret is hashed and forgotten: it is in no decision, use, log line,
//	    error or metric.
//	G1  A gateway's doors (authorize.go, extauthz) give one answer, Node.Answer's,
//	    and differ in how they write it down.
//	G2  The keyspace and the demand are the gateway's words. The client's are its
//	    credential, and behind trusted proxies where it comes from and by what
//	    scheme; what cannot be told denies.
//	G3  An answer that allows says every identity field, so a gateway that copies
//	    them leaves nothing that a client forged. A refusal says none.
//	L1  Every decision of an open epoch has a number; the numbers are 1..n without
//	    a hole.
//	L2  An epoch on the stream reads: open, uses and gaps that account for each
//	    number once, in order, then close, or a gap of unknown length written by
//	    the next start.
//	L3  A loss is a gap record that says how many, never silence.
//	L4  One message is in flight at a time, under one id until it is confirmed.
//	    So the last message under a node's subject says where its record ends.
//	L5  An epoch is greater than every epoch of the node before it.
//
// Read on in this order: verify.go, limit.go, freshness.go, node.go, ledger.go,
// gateway.go.
package verifier
