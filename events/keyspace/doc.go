// Package keyspace holds the definition of a keyspace: the rules under which an
// operator's product issues and accepts keys. It is data, which an event carries.
//
//	definition.go  the document: key types, scopes, limits, expiry, order of checks
//	valid.go       every fault of a document at once
//	compiled.go    the document made ready for use, once, when it is folded
//	secretform.go  what the secret of a key type looks like; find.go finds one in text
//	envelope.go    what a refusal looks like to the product's clients
//
// It is a leaf below package events, because an event carries a definition: it knows
// neither keys nor tenants, and names the reasons of refusals for events.Reason.
package keyspace
