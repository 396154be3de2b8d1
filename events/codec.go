package events

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"regexp"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events/input"
)

// ContentType is the media type of an event's document. A message carries it in
// the header content-type, by which a reader of the NATS binding (1.0.3, section
// 3) tells the structured mode. Our own readers do not ask for it: a document says
// itself what it is.
const ContentType = "application/cloudevents+json"

// Message is an event on the wire: one CloudEvents 1.0 document in the JSON
// format 1.0.2, in the NATS binding's structured mode. Headers belong to the
// transport. Nothing of the event is in them.
type Message struct {
	Subject string // of NATS; the document says it once more
	Data    []byte // the document
}

// Hash returns the SHA-256 of the document's bytes as they are stored.
func (m *Message) Hash() Hash { return sha256.Sum256(m.Data) }

// Record returns the event e, which the message holds, in its place in the log.
func (m *Message) Record(e Event, seq Seq, stored Time) Recorded {
	return Recorded{Event: e, Seq: seq, Stored: stored, Hash: m.Hash(), Document: m.Data}
}

// document is the CloudEvent. Its members stand in this order, and in no other
// (E4). Without datacontenttype the data is JSON (CloudEvents JSON format, 3.1.1).
// rev, prev, cmd and minrelease are extensions of ours; rev is a CloudEvents
// Integer, hence at most MaxRev.
type document[D any] struct {
	SpecVersion string  `json:"specversion"`
	Type        string  `json:"type"`
	Source      string  `json:"source"`
	Subject     string  `json:"subject"`
	ID          EventID `json:"id"`
	Time        Time    `json:"time"`
	Rev         uint64  `json:"rev"`
	Prev        Hash    `json:"prev,omitzero"`
	Command     string  `json:"cmd,omitzero"`
	MinRelease  Release `json:"minrelease,omitzero"` // the first release that reads this type and version; absent = every one
	Data        D       `json:"data"`
}

// body is the data of the CloudEvent: what is not an attribute.
type body[D any] struct {
	Actor     Actor      `json:"actor"`
	IP        netip.Addr `json:"ip,omitzero"`
	UserAgent string     `json:"user_agent,omitzero"`
	RequestID string     `json:"request_id,omitzero"`
	Reason    string     `json:"reason,omitzero"`
	Data      D          `json:"data"`
}

// stored is a document as it is read: its data stays as it is until the type is
// known, and attributes that this release does not know are kept apart.
type stored struct {
	document[jsontext.Value]
	Unknown jsontext.Value `json:",embed"`
}

const specVersion = "1.0"

// The forms of names that a later release may add: of an attribute (CloudEvents
// 1.0, 3.1), of a type and of a release.
var (
	attributeRE = regexp.MustCompile(`^[a-z0-9]{1,20}$`)
	typeRE      = regexp.MustCompile(`^keytrail\.[a-z_]+\.[a-z_]+\.v[1-9][0-9]*$`)
	releaseRE   = regexp.MustCompile(`^[0-9]+(\.[0-9]+){1,2}$`)
)

// TypePrefix, the type and the version make the CloudEvents type of an event:
// "keytrail.key.created.v1".
const TypePrefix = "keytrail."

var (
	encodeOptions = json.JoinOptions(json.Deterministic(true), jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
	storedOptions = json.JoinOptions(jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
	decodeOptions = json.JoinOptions(json.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
)

// Encode validates e and returns its only wire form (E4), in the newest version
// of its type.
func Encode(e *Event) (Message, error) { return release.encode(e) }

func (c *catalogue) encode(e *Event) (Message, error) { return c.encodeFor(e, "") }

// encode prints e, whose data is of the version of s.
func (s *shape) encode(e *Event) (Message, error) {
	if b, ok := s.print(e); ok {
		return Message{Subject: e.Aggregate.Subject(), Data: b}, nil
	}
	return s.marshal(e)
}

// marshal is encode by the JSON package, which the form of a document follows from.
func (s *shape) marshal(e *Event) (Message, error) {
	b, err := json.Marshal(&document[body[Data]]{
		SpecVersion: specVersion, Type: s.name, Source: e.Source, Subject: e.Aggregate.String(), ID: e.ID, Time: e.Time,
		Rev: e.Rev, Prev: e.Prev, Command: e.Command, MinRelease: s.since,
		Data: body[Data]{e.Actor, e.IP, e.UserAgent, e.RequestID, e.Reason, e.Data},
	}, encodeOptions)
	if err != nil {
		return Message{}, fmt.Errorf("encode %s: %w", e.Type(), err)
	}
	return Message{Subject: e.Aggregate.Subject(), Data: b}, nil
}

// NewerError says that the log holds something that only a newer release of
// Keytrail writes: an event type or version, an attribute, a member or a field
// that this release does not know. The reader must stop, because skipping it would
// be guessing. Nothing is damaged, and upgrading the process mends it.
type NewerError struct {
	What    string
	Release Release // the first release that reads it, as "1.4"; "" when the log does not say
}

func (e *NewerError) Error() string {
	wanted := "the release that wrote it"
	if e.Release != "" {
		wanted = "release " + string(e.Release)
	}
	return e.What + " is unknown to this release of Keytrail: a newer release wrote it. Upgrade this process to " + wanted + ", or newer"
}

// Decode reads what Encode wrote, of this release or an older one; the data comes
// in the newest version of its type. A type, version, attribute or member that
// this release does not know is a *NewerError. It keeps nothing of m.Data.
func Decode(m *Message) (Event, error) { return release.decode(m) }

func (c *catalogue) decode(m *Message) (Event, error) {
	if e, ok := c.scan(m); ok {
		return e, nil
	}
	e, s, err := c.read(m)
	if err != nil {
		return Event{}, fmt.Errorf("decode event on %s: %w", input.Quote(m.Subject), err)
	}
	e.Data = s.newest(e.Data)
	return e, nil
}

// read reads an event in the version in which it was written.
func (c *catalogue) read(m *Message) (e Event, s *shape, err error) {
	var d stored
	if err = json.Unmarshal(m.Data, &d, storedOptions); err != nil {
		return e, nil, fmt.Errorf("document: %w", err)
	}
	if d.SpecVersion != specVersion {
		return e, nil, fmt.Errorf("specversion %s: want a document of CloudEvents %s", input.Quote(d.SpecVersion), specVersion)
	}
	if d.MinRelease != "" {
		if err = d.MinRelease.Validate(); err != nil {
			return e, nil, fmt.Errorf("minrelease: %w", err)
		}
	}
	if s = c.shapes[d.Type]; s == nil {
		if !typeRE.MatchString(d.Type) {
			return e, nil, fmt.Errorf("type %s: want one as %skey.created.v1", input.Quote(d.Type), TypePrefix)
		}
		return e, nil, &NewerError{What: "event type " + input.Quote(d.Type), Release: d.MinRelease}
	}
	if name := firstName(d.Unknown); name != "" {
		if !attributeRE.MatchString(name) {
			return e, nil, fmt.Errorf("member %s: want CloudEvents attributes, 1 to 20 lower-case letters and digits", input.Quote(name))
		}
		return e, nil, &NewerError{What: "attribute " + input.Quote(name), Release: d.MinRelease}
	}
	if d.MinRelease != s.since {
		return e, nil, fmt.Errorf("minrelease %s: want %s for %s", input.Quote(string(d.MinRelease)), input.Quote(string(s.since)), s.name)
	}
	if e.Aggregate, err = ParseSubject(m.Subject); err != nil {
		return e, nil, err
	}
	if d.Subject != e.Aggregate.String() {
		return e, nil, fmt.Errorf("subject %s of the document: want %s", input.Quote(d.Subject), input.Quote(e.Aggregate.String()))
	}
	e.ID, e.Time, e.Rev, e.Prev, e.Source, e.Command = d.ID, d.Time, d.Rev, d.Prev, d.Source, d.Command
	var b body[jsontext.Value]
	if err = json.Unmarshal(d.Data, &b, decodeOptions); err != nil {
		return e, nil, newer("body", d.MinRelease, err)
	}
	e.Actor, e.IP, e.UserAgent, e.RequestID, e.Reason = b.Actor, b.IP, b.UserAgent, b.RequestID, b.Reason
	e.Data = s.empty()
	if err = json.Unmarshal(b.Data, e.Data, decodeOptions); err != nil {
		return e, nil, newer("data", d.MinRelease, err)
	}
	return e, s, e.Validate()
}

// firstName returns the name of the first member of an object, "" when there is none.
func firstName(object jsontext.Value) string {
	d := jsontext.NewDecoder(bytes.NewReader(object))
	for range 2 {
		t, err := d.ReadToken()
		if err != nil {
			return ""
		}
		if t.Kind() == '"' {
			return t.String()
		}
	}
	return ""
}

// newer tells a member that this release does not know from what is no event.
func newer(where string, minRelease Release, err error) error {
	var sem *json.SemanticError
	if errors.Is(err, json.ErrUnknownName) && errors.As(err, &sem) {
		return &NewerError{What: fmt.Sprintf("member %s of the event's %s", input.Quote(sem.JSONPointer), where), Release: minRelease}
	}
	return fmt.Errorf("%s: %w", where, err)
}

// DecodeStrict is Decode that also insists on E4's second half: re-encoding
// must print the same bytes. It costs twice as much; checkers and fuzzers use it.
func DecodeStrict(m *Message) (Event, error) { return release.decodeStrict(m) }

func (c *catalogue) decodeStrict(m *Message) (Event, error) {
	e, s, err := c.read(m)
	if err != nil {
		return Event{}, fmt.Errorf("decode event on %s: %w", input.Quote(m.Subject), err)
	}
	again, err := s.encode(&e)
	if err != nil {
		return e, err
	}
	if !bytes.Equal(again.Data, m.Data) {
		return e, fmt.Errorf("event on %s: not in canonical form", input.Quote(m.Subject))
	}
	e.Data = s.newest(e.Data)
	return e, nil
}
