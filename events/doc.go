// Package events holds the facts of Keytrail and nothing else: the catalogue
// of lifecycle events, the ids they speak of, the key's state machine, the wire
// codec, and the contracts of the logs that keep them.
//
//	request ─> commands ─> EVENTS ─> log ─> projections ─> verifier ─> answer
//	                                  └──> audit                └──> uses
//
// It is a leaf: it does no I/O, owns no clock, draws no randomness, and imports
// no other package of Keytrail. Where the facts are kept is events/eventlog;
// what they add up to is projections.
//
// Invariants (code that upholds one cites it by number):
//
//	E1  An event is immutable. A change of meaning is a new type or version.
//	E2  One aggregate (key, role, keyspace, reader) has one subject, and its
//	    events carry rev 1..n and the hash of the event before (prev).
//	E3  No secret is representable: events hold the SHA-256 digest only, and
//	    Secret and Digest print redacted.
//	E4  Decode(Encode(e)) == e but for nil and empty lists, and whatever
//	    DecodeStrict accepts Encode prints back byte for byte. Unknown types,
//	    versions, members and headers are errors.
//	E5  The key's life is written once, in Next. The write side asks it "may I",
//	    the fold asks it "what now".
//	E6  Time is milliseconds since the Unix epoch, UTC, and always an argument.
//
// Read on in this order: lifecycle.go, catalogue.go, log.go, use.go.
package events
