package events

import (
	"maps"
	"slices"
	"strings"
)

// Shapes lists each version of each type, as key.created.v1.
func Shapes() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(release.shapes)) {
		out = append(out, strings.TrimPrefix(name, TypePrefix))
	}
	return out
}

// Catalogue is what another release knows of events.
type Catalogue struct{ c *catalogue }

// NextVersion is a version that another release adds.
type NextVersion struct {
	Type    Type
	Since   Release
	Empty   func() Data
	Upgrade func(Data) Data // of the version before it, to this one
	Lower   func(Data) Data // of this version, to the one before
}

// NextRelease returns the catalogue of this release and what is added to it.
func NextRelease(added ...NextVersion) Catalogue {
	var shapes []shape
	for _, name := range slices.Sorted(maps.Keys(release.shapes)) {
		shapes = append(shapes, *release.shapes[name])
	}
	for _, a := range added {
		version := 1
		for i := range shapes {
			if s := &shapes[i]; s.typ == a.Type && s.upgrade == nil {
				s.upgrade, version = a.Upgrade, s.version+1
			}
		}
		shapes = append(shapes, shape{typ: a.Type, version: version, since: a.Since, empty: a.Empty, lower: a.Lower})
	}
	return Catalogue{newCatalogue(shapes...)}
}

// Scan and Read are the two ways by which Decode reads.
func Scan(m *Message) (Event, bool) { return release.scan(m) }

func Read(m *Message) (Event, error) {
	e, s, err := release.read(m)
	if err != nil {
		return e, err
	}
	e.Data = s.newest(e.Data)
	return e, nil
}

func (c Catalogue) Encode(e *Event) (Message, error)               { return c.c.encode(e) }
func (c Catalogue) EncodeFor(e *Event, r Release) (Message, error) { return c.c.encodeFor(e, r) }
func (c Catalogue) DecodeStrict(m *Message) (Event, error)         { return c.c.decodeStrict(m) }

// Print and Marshal are the two ways by which Encode prints.
func Print(e *Event) ([]byte, bool) { return release.newest[e.Type()].print(e) }

func Marshal(e *Event) (Message, error) { return release.newest[e.Type()].marshal(e) }
