package events

import (
	"fmt"
	"slices"
	"strconv"
)

// catalogue is what one release knows of events: each version of each type that
// any release until then has written. Versions are never taken out, so a release
// reads every older log; a shape never changes, so a log reads the same for ever
// (E1).
type catalogue struct {
	shapes map[string]*shape // by the name of the CloudEvents type
	newest map[Type]*shape
	reads  Release // the newest that a shape names
}

// shape is one version of one type of event.
type shape struct {
	typ     Type
	version int
	// since is the first release that reads it, "" for the first of all. The
	// document carries it (minrelease), for an older release to tell its operator.
	since Release
	// empty makes its data, to be read into.
	empty func() Data
	// upgrade returns data of this version as that of the next. nil = the newest.
	upgrade func(Data) Data
	// lower returns data of this version as that of the one before, for readers that
	// are not upgraded yet; it returns nil for what that one cannot say. Its upgrade
	// must give the same data again, else the event is not written. nil = no data can be.
	lower func(Data) Data

	name         string // of the CloudEvents type, as "keytrail.key.created.v1"
	before, next *shape
}

// newCatalogue panics unless each type has its versions from 1 on, each but the
// newest with an upgrade.
func newCatalogue(shapes ...shape) *catalogue {
	c := &catalogue{map[string]*shape{}, map[Type]*shape{}, FirstRelease}
	for i := range shapes {
		s := &shapes[i]
		s.name = TypePrefix + string(s.typ) + ".v" + strconv.Itoa(s.version)
		before := c.newest[s.typ]
		if before == nil && s.version != 1 || before != nil && (s.version != before.version+1 || before.upgrade == nil) ||
			s.empty().EventType() != s.typ || s.since != "" && s.since.Validate() != nil {
			panic(fmt.Sprintf("events: %s has no place in the catalogue", s.name))
		}
		if before != nil {
			before.next, s.before = s, before
		}
		if c.reads.Before(s.since) {
			c.reads = s.since
		}
		c.shapes[s.name], c.newest[s.typ] = s, s
	}
	for typ, s := range c.newest {
		if s.upgrade != nil {
			panic(fmt.Sprintf("events: the newest version of %s has an upgrade", typ))
		}
	}
	return c
}

// newest returns data of the version of s as that of the newest.
func (s *shape) newest(d Data) Data {
	for ; s.upgrade != nil; s = s.next {
		d = s.upgrade(d)
	}
	return d
}

// first is version 1 of a type, which every release reads.
func first[D any, P interface {
	*D
	Data
}]() shape {
	return shape{typ: P(new(D)).EventType(), version: 1, empty: func() Data { return P(new(D)) }}
}

// release is the catalogue of this release. A change of what an event means, or of
// its members, is a new version: the old type of Go stays, renamed, with its
// version, its upgrade and its golden event; the new one gets since and lower.
// Writers write the newest version that every process of the deployment reads
// (Floor.Release).
var release = newCatalogue(
	first[KeyspaceDefined](),
	first[RoleDefined](),
	first[RoleDeleted](),
	first[TenantLimitUpdated](),
	first[KeyCreated](),
	first[KeyImported](),
	first[KeyScopesAssigned](),
	first[KeyResourcesAssigned](),
	first[KeyAllowlistUpdated](),
	first[KeyLimitUpdated](),
	first[KeyExpiryChanged](),
	first[KeyRenamed](),
	first[KeyDisabled](),
	first[KeyEnabled](),
	first[KeyRotated](),
	first[KeyRevoked](),
	first[KeyExpired](),
	first[AuditQueried](),
	first[AuditExported](),
	first[AuditExportEnded](),
)

// Types lists the types of the catalogue in the order of their names.
func Types() []Type {
	out := make([]Type, 0, len(release.newest))
	for t := range release.newest {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// Version returns the newest version of a type, the one that Encode writes; 0 when
// the catalogue has no such type.
func Version(t Type) int {
	s := release.newest[t]
	if s == nil {
		return 0
	}
	return s.version
}

// NewData returns empty data of the newest version of a type, a pointer; nil when
// the catalogue has no such type.
func NewData(t Type) Data {
	s := release.newest[t]
	if s == nil {
		return nil
	}
	return s.empty()
}
