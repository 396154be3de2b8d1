package events

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Message is an event on the wire: a CloudEvents 1.0 event in the NATS
// binding's binary mode (cloudevents/spec, nats-protocol-binding 1.0.3). The
// attributes are the headers that start with "ce-", the body is the data.
type Message struct {
	Subject string
	Header  map[string][]string // the case of a name matters
	Data    []byte
}

// The CloudEvents attributes we write, all of them, in the order of the hash.
// cmd, prev and rev are extensions of ours.
const (
	hdrCmd         = "ce-cmd" // absent when there is no command id
	hdrContentType = "ce-datacontenttype"
	hdrID          = "ce-id"
	hdrPrev        = "ce-prev" // absent at rev 1
	hdrRev         = "ce-rev"
	hdrSource      = "ce-source"
	hdrSpecVersion = "ce-specversion"
	hdrSubject     = "ce-subject"
	hdrTime        = "ce-time"
	hdrType        = "ce-type"
)

// TypePrefix and the version suffix make the CloudEvents type of an event:
// "keytrail.key.created.v1".
const (
	TypePrefix = "keytrail."
	version1   = ".v1"
)

// body is the data of the CloudEvent: what is not an attribute.
type body struct {
	Actor     Actor          `json:"actor"`
	IP        netip.Addr     `json:"ip,omitzero"`
	UserAgent string         `json:"user_agent,omitzero"`
	RequestID string         `json:"request_id,omitzero"`
	Reason    string         `json:"reason,omitzero"`
	Data      jsontext.Value `json:"data"`
}

var (
	encodeOptions = json.JoinOptions(json.Deterministic(true), jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
	decodeOptions = json.JoinOptions(json.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false))
)

// Encode validates e and returns its only wire form (E4).
func Encode(e *Event) (Message, error) {
	if err := e.Validate(); err != nil {
		return Message{}, err
	}
	data, err := json.Marshal(e.Data, encodeOptions)
	if err != nil {
		return Message{}, fmt.Errorf("encode %s: %w", e.Type(), err)
	}
	b, err := json.Marshal(body{e.Actor, e.IP, e.UserAgent, e.RequestID, e.Reason, data}, encodeOptions)
	if err != nil {
		return Message{}, fmt.Errorf("encode %s: %w", e.Type(), err)
	}
	h := map[string][]string{
		hdrContentType: {"application/json"},
		hdrID:          {e.ID.String()},
		hdrRev:         {strconv.FormatUint(e.Rev, 10)},
		hdrSource:      {e.Source},
		hdrSpecVersion: {"1.0"},
		hdrSubject:     {e.Aggregate.String()},
		hdrTime:        {e.Time.String()},
		hdrType:        {TypePrefix + string(e.Type()) + version1},
	}
	if e.Command != "" {
		h[hdrCmd] = []string{e.Command}
	}
	if !e.Prev.IsZero() {
		h[hdrPrev] = []string{e.Prev.String()}
	}
	return Message{Subject: e.Aggregate.Subject(), Header: h, Data: b}, nil
}

// UnknownTypeError says that the log holds an event that this release cannot
// read. The reader must stop: skipping it would be guessing.
type UnknownTypeError struct{ Type string }

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("event type %q is unknown to this release of Keytrail: upgrade this process to the release that wrote it, or newer", clip(e.Type))
}

// Decode reads what Encode wrote. Headers that do not start with "ce-" belong
// to the transport and are ignored; anything else out of place is an error.
// An unknown type or version is an *UnknownTypeError.
func Decode(m *Message) (Event, error) {
	e, err := decode(m)
	if err != nil {
		return Event{}, fmt.Errorf("decode event on %s: %w", clip(m.Subject), err)
	}
	return e, nil
}

func decode(m *Message) (e Event, err error) {
	known := 0
	get := func(name string) string {
		v := m.Header[name]
		if len(v) == 0 {
			return ""
		}
		known++
		if len(v) > 1 {
			err = fmt.Errorf("header %s stands %d times", name, len(v))
		}
		if v[0] == "" {
			err = fmt.Errorf("header %s is empty", name)
		}
		return v[0]
	}
	var (
		spec, ct, id, rev, src, sub, at, typ, prev, cmd = get(hdrSpecVersion), get(hdrContentType), get(hdrID),
			get(hdrRev), get(hdrSource), get(hdrSubject), get(hdrTime), get(hdrType), get(hdrPrev), get(hdrCmd)
	)
	if err != nil {
		return e, err
	}
	total := 0
	for name := range m.Header {
		if strings.HasPrefix(name, "ce-") {
			total++
		}
	}
	if total != known {
		return e, fmt.Errorf("%d CloudEvents attributes, of which %d are known", total, known)
	}
	if spec != "1.0" || ct != "application/json" {
		return e, fmt.Errorf("want CloudEvents 1.0 in binary mode with application/json")
	}
	name, ok := strings.CutPrefix(typ, TypePrefix)
	name, ok2 := strings.CutSuffix(name, version1)
	empty := Catalogue[Type(name)]
	if !ok || !ok2 || empty == nil {
		return e, &UnknownTypeError{typ}
	}
	if e.Aggregate, err = ParseSubject(m.Subject); err != nil {
		return e, err
	}
	if sub != e.Aggregate.String() {
		return e, fmt.Errorf("%s %q does not match the subject", hdrSubject, clip(sub))
	}
	if e.ID, err = ParseEventID(id); err != nil {
		return e, err
	}
	if e.Time, err = ParseTime(at); err != nil {
		return e, err
	}
	if e.Rev, err = strconv.ParseUint(rev, 10, 64); err != nil || strconv.FormatUint(e.Rev, 10) != rev {
		return e, fmt.Errorf("%s %q: want a decimal number", hdrRev, clip(rev))
	}
	if prev != "" {
		if err = e.Prev.UnmarshalText([]byte(prev)); err != nil {
			return e, fmt.Errorf("%s: %w", hdrPrev, err)
		}
	}
	e.Source, e.Command = src, cmd
	var b body
	if err = json.Unmarshal(m.Data, &b, decodeOptions); err != nil {
		return e, fmt.Errorf("body: %w", err)
	}
	e.Actor, e.IP, e.UserAgent, e.RequestID, e.Reason = b.Actor, b.IP, b.UserAgent, b.RequestID, b.Reason
	e.Data = empty()
	if err = json.Unmarshal(b.Data, e.Data, decodeOptions); err != nil {
		return e, fmt.Errorf("data: %w", err)
	}
	return e, e.Validate()
}

// DecodeStrict is Decode that also insists on E4's second half: re-encoding
// must print the same bytes. It costs twice as much; checkers and fuzzers use it.
func DecodeStrict(m *Message) (Event, error) {
	e, err := Decode(m)
	if err != nil {
		return e, err
	}
	again, err := Encode(&e)
	if err != nil {
		return e, err
	}
	if !bytes.Equal(again.Data, m.Data) || again.Hash() != m.Hash() {
		return e, fmt.Errorf("event on %s: not in canonical form", clip(m.Subject))
	}
	return e, nil
}

// Hash returns the SHA-256 over the subject, every ce-* header in the order of
// its name, and the body, each preceded by its length as 8 bytes big endian.
// Transport headers stay out: they change when a message is mirrored.
func (m *Message) Hash() Hash {
	names := make([]string, 0, 10)
	for name := range m.Header {
		if strings.HasPrefix(name, "ce-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	buf := make([]byte, 0, 1024+len(m.Data))
	put := func(s string) {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(s)))
		buf = append(buf, s...)
	}
	put(m.Subject)
	for _, name := range names {
		put(name)
		for _, v := range m.Header[name] {
			put(v)
		}
	}
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(m.Data)))
	buf = append(buf, m.Data...)
	return sha256.Sum256(buf)
}
