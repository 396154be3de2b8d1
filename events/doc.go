// Package events holds the facts of Keytrail and nothing else: the catalogue
// of lifecycle events, the ids they speak of, the key's state machine, the wire
// codec, and the contracts of the logs that keep them.
//
//	request ─> commands ─> EVENTS ─> log ─> projections ─> verifier ─> answer
//	                                  └──> audit                └──> uses
//
// It does no I/O, owns no clock, draws no randomness, and of Keytrail imports only the
// two leaves below it: events/keyspace, the definition that an event carries, and
// events/input, what may come in. Where the facts are kept is events/eventlog; what
// they add up to is projections.
//
// Invariants (code that upholds one cites it by number):
//
//	E1  An event is immutable. A change of meaning, or of members, is a new type or
//	    version; older versions are upgraded as they are read (versions.go).
//	E2  One aggregate (key, role, keyspace, reader) has one subject, and its
//	    events carry rev 1..n and the hash of the event before (prev).
//	E3  No secret is representable: events hold the SHA-256 digest only, and
//	    Secret and Digest print redacted.
//	E4  Decode(Encode(e)) == e but for nil and empty lists, and what DecodeStrict
//	    accepts prints back byte for byte. Unknown types, versions, members and
//	    attributes are errors, which name the release that knows them.
//	E5  The key's life is written once, in Next. The write side asks it "may I",
//	    the fold asks it "what now".
//	E6  Time is milliseconds since the Unix epoch, UTC, and always an argument.
//	E7  Reading asks for form only (Validate). Rules that may tighten bind who
//	    appends (CanAppend).
//
// Read on in this order: lifecycle.go, catalogue.go, versions.go, codec.go, log.go,
// use.go.
package events
