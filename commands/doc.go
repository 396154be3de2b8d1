// Package commands is the write side: a request becomes events, or a refusal.
//
//	request ─> COMMANDS ─> events ─> log ─> projections ─> verifier ─> answer
//
// Each command has a file of its own with what it asks for, the check of every
// field, and a pure Decide: the state, the rules, the instant and what was drawn
// at random go in, the facts or a typed refusal come out. The handler does the
// rest: load, decide, append, and again when the history has moved on. It keeps
// no state that matters; any number of control nodes work side by side.
//
// Invariants (code that upholds one cites it by number):
//
//	C1  Deciding is pure. No clock, log, randomness or context inside Decide.
//	C2  One request is one Append: all of its events or none. The expectation is
//	    the end of the history that was decided on, so nothing is decided on a
//	    history that has moved on. An import is as many commands as it has keys.
//	C3  Every decision stands on a view that holds the history that was loaded, and
//	    everything that was acknowledged before, on whichever node. So does the
//	    caller's own power: it is rebuilt from that view and never more than the
//	    endpoint saw (caller, in power.go).
//	C4  A secret exists from the draw to the one reply that shows it. The log gets
//	    its SHA-256 digest; a replayed reply carries no secret. No text of a batch
//	    holds the secret of a key (guard_text.go).
//	C5  Nobody gives or touches what is beyond their own power. Outside its
//	    keyspaces and tenants a principal sees nothing. In the built-in keyspace a
//	    key gains, by whichever command, only what the caller itself holds: scopes,
//	    reach, lifetime, addresses and rate. And no command leaves Keytrail without
//	    an administrator that nothing can shut out. guard asks all of it, once, of
//	    all events of a command (guard.go). A principal may always disable or revoke
//	    the key that it came with, unless that is the last administrator's.
//	C6  Rotation never lengthens the old key's life.
//	C7  A field that is wrong is refused together with every other that is wrong;
//	    nothing is silently dropped, cut or switched off.
//	C8  No definition takes power from keys that live, gives them power, or leaves
//	    them where none could be made, and no deleted role comes back to keys that
//	    hold it still, unless the request says that this is meant (review.go, unheld).
//	    The keys themselves stay as they are; what they may do follows the definition.
//	    Best effort, as names are, for a key that is made in the same moment.
//	C9  No command is acknowledged before the floor of the leases holds its events,
//	    nor is a replay, nor what changed nothing: from then on no node renews its
//	    lease without them. Answers that show a resource, and refusals, rest on a
//	    renewal of this node's own lease, which a node that is cut off from the
//	    log's majority does not get; and what they show is acknowledged first. Else
//	    the answer is 503, within seconds (proof.go).
//
// # Idempotency
//
// A write may carry an Idempotency-Key (draft-ietf-httpapi-idempotency-key-header).
// Its scope is the actor and the aggregate: the key, the role, the tenant or the
// keyspace that is written, and for a new key its keyspace and tenant. The events
// of the write carry the command id, 64 hexadecimal digits:
//
//	first  16 bytes of SHA-256(actor, idempotency key)            who asked, which ask
//	second 16 bytes of SHA-256(method, path, canonical body)      what was asked
//
// A later request whose first half is in the aggregate's history is a replay when
// the second half is the same: it is answered with the resource as it now is and
// the position of the first answer, without the secret, marked
// Idempotent-Replayed: true. With another second half it is refused
// (idempotency_key_reused). For a new key the id itself is derived from the first
// half with keyspace and tenant, so two nodes, however far apart in time, meet on
// one subject with the expectation "no history": exactly once, for ever, with no
// index and no retention. A request that was refused or that changed nothing left
// no event; its retry is judged anew.
//
// An import needs no such key: the id of an imported key is derived from keyspace,
// tenant and digest, and the same import again is answered with what there is.
//
// # What is best effort
//
// A name is unique among the active and disabled keys of a tenant in a keyspace.
// One control node is exact (C3, and requests for one name wait for each other);
// two nodes that give one name within the same few milliseconds may both succeed,
// because no history is common to both. Ids, not names, identify keys. The guard of
// the last administrator is of the same strength. A digest that
// two nodes import for two tenants at once belongs to the first on the log; see
// Handler.Import.
//
// Read on in this order: create.go, rules.go, run.go, proof.go, power.go, guard.go, handler.go, http.go.
package commands
