package events

import (
	"fmt"
	"math"
	"net/netip"
)

// Event is one fact about one aggregate. Everything but Data is the envelope,
// common to all types.
type Event struct {
	ID        EventID    // unique; equal to the message's Nats-Msg-Id
	Aggregate Aggregate  // whose history it belongs to
	Time      Time       // when it was decided, by the writer's clock
	Rev       uint64     // 1..n within the aggregate (E2)
	Prev      Hash       // hash of the aggregate's event before; zero for rev 1
	Source    string     // which component wrote it: "/keytrail/control/<node>"
	Command   string     // idempotency: 64 hex digits naming the command, or ""
	Actor     Actor      // who caused it
	IP        netip.Addr // from where; invalid when Keytrail itself acted
	UserAgent string     // at most 256 characters
	RequestID string     // joins the entries of one request, at most 64 characters
	Reason    string     // why, in a person's words, at most 500 characters
	Data      Data       // what happened
}

// MaxRev bounds the events of one aggregate: revisions are CloudEvents Integers,
// of 32 bits with a sign.
const MaxRev = math.MaxInt32

// Type returns the type of the event's data.
func (e *Event) Type() Type { return e.Data.EventType() }

// Key returns the key the event is about, or the zero id.
func (e *Event) Key() KeyID {
	if e.Aggregate.Kind != KindKey {
		return KeyID{}
	}
	id, _ := ParseKeyID(e.Aggregate.ID)
	return id
}

// Recorded is an event with its place in the log.
type Recorded struct {
	Event
	Seq    Seq  // in the log of the aggregate's Stream
	Stored Time // by the log's own clock
	Hash   Hash // SHA-256 of the document; the next event's Prev
	// Document is the event as it is stored, byte for byte. It is shared with the
	// message that it came in, and is read only: copy what is kept.
	Document []byte
}

// Validate reports the first fault of the event's form, which no release may be
// stricter about than those before it: stored events are held to it as well. What
// else an event to be appended must fulfil is in CanAppend.
func (e *Event) Validate() error {
	if e.ID.IsZero() {
		return fmt.Errorf("event: id is missing")
	}
	if err := e.Aggregate.Validate(); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	if err := e.Time.Validate(); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	if e.Rev == 0 || e.Rev > MaxRev || (e.Rev == 1) != e.Prev.IsZero() {
		return fmt.Errorf("event: rev %d: want 1 with no prev, or up to %d with the hash of the event before", e.Rev, MaxRev)
	}
	if e.Source == "" || len(e.Source) > 128 || !asciiToken(e.Source) {
		return fmt.Errorf("event: source: want 1 to 128 visible ASCII characters")
	}
	if e.Command != "" && !isHex(e.Command, 64) {
		return fmt.Errorf("event: command: want 64 lower-case hexadecimal digits")
	}
	if err := e.Actor.Validate(); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	if e.IP.Zone() != "" {
		return fmt.Errorf("event: ip: want an address without a zone")
	}
	if e.Data == nil {
		return fmt.Errorf("event: data is missing")
	}
	if want := e.Data.aggregate(); want != e.Aggregate.Kind {
		return fmt.Errorf("event: %s belongs to a %s, not to a %s", e.Type(), want, e.Aggregate.Kind)
	}
	if err := e.Data.Validate(); err != nil {
		return fmt.Errorf("event %s: %w", e.Type(), err)
	}
	return nil
}

// asciiToken reports whether s is visible ASCII that needs no percent-encoding
// in a CloudEvents header.
func asciiToken(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '%' {
			return false
		}
	}
	return true
}
