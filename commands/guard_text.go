package commands

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// guardText refuses a batch that would store a secret, or text that cannot be
// seen (input.Visible), for ever. It reads every text of every event that the
// command brings, so that neither a new command nor a new member can forget it.
// What an event repeats of the record is not asked about: the state before, and
// all that a rotation's successor takes from the old key. made are the digests of
// keys that the command makes, beside those of writes.
func guardText(known events.SecretFinder, writes []events.Write, made map[events.Digest]bool) error {
	g := textGuard{known: known, made: made}
	for i := range writes {
		if d := created(&writes[i].Event); d != nil {
			g.digests = append(g.digests, d.Digest)
		}
	}
	for i := range writes {
		e := &writes[i].Event
		g.check("reason", e.Reason, true)
		if d := created(e); d != nil && !d.RotatedFrom.IsZero() {
			continue
		}
		g.check("keyspace", string(e.Aggregate.Keyspace), false)
		g.check("tenant", string(e.Aggregate.Tenant), false)
		if e.Aggregate.Kind == events.KindRole {
			g.check("role", e.Aggregate.ID, false)
		}
		m, err := writes[i].Encode()
		if err != nil {
			return err
		}
		if g.plain(m.Data) {
			continue
		}
		if err := g.data(e.Data); err != nil {
			return err
		}
	}
	if g.secret != nil {
		return g.secret
	}
	return g.unseen.OrNil()
}

// created returns what the event says of a key that it makes, nil for others.
func created(e *events.Event) *events.KeyCreated {
	switch d := e.Data.(type) {
	case *events.KeyCreated:
		return d
	case *events.KeyImported:
		return &d.KeyCreated
	}
	return nil
}

type textGuard struct {
	known   events.SecretFinder
	digests []events.Digest // of the keys that the batch itself makes
	made    map[events.Digest]bool

	secret *Refusal          // the first secret found
	unseen input.FieldErrors // text that cannot be seen
}

// check looks at one text; people reports whether it is shown to people as it is.
func (g *textGuard) check(field, text string, people bool) {
	if g.secret == nil && g.holds(text) {
		g.secret = refuse(CodeSecret, field, "this holds the secret of a key, which must not be stored: nothing was written")
	}
	if people {
		if err := input.Visible(text); err != nil {
			g.unseen.Add(field, "invalid", err.Error())
		}
	}
}

func (g *textGuard) holds(text string) bool {
	if len(text) < events.MinSecret {
		return false
	}
	if events.HoldsSecret(g.known, text) {
		return true
	}
	return len(g.digests) > 0 && events.HoldsSecret(digestFinder(func(d events.Digest) bool { return g.made[d] || slices.Contains(g.digests, d) }), text)
}

// digestFinder finds the secrets with digests of which it says so.
type digestFinder func(events.Digest) bool

func (f digestFinder) FindSecret(text string) (start, end int, ok bool) {
	none := func(func(*keyspace.Compiled) bool) {}
	return events.FindSecret(text, none, f)
}

// plain reports whether the data of a document, as Encode prints it, can need no
// refusal: every name and every string is printable ASCII without escapes, and those that
// are long enough hold no secret. That is true of nearly every event, and costs a tenth of
// what data does, which names the member.
func (g *textGuard) plain(document []byte) bool {
	// Within a string a quote is escaped, so neither cut is made in one.
	_, body, _ := bytes.Cut(document, []byte(`,"data":{`))
	_, data, ok := bytes.Cut(body, []byte(`,"data":`))
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case '"':
			text, end := plainText(data[i+1:])
			if text == nil {
				return false
			}
			i += end + 1
			if depth == 1 && i+1 < len(data) && data[i+1] == ':' {
				switch string(text) {
				case "before":
					return false
				case "digest": // is no text
					i += bytes.IndexByte(data[i+3:], '"') + 3
					continue
				}
			}
			if len(text) >= events.MinSecret && g.holds(string(text)) {
				return false
			}
		}
	}
	return ok
}

// plainText returns the text before the quote that ends it, and where that is; nil if the
// text is not printable ASCII without escapes.
func plainText(b []byte) (text []byte, end int) {
	for i, c := range b {
		switch {
		case c == '"':
			return b[:i:i], i
		case c < ' ' || c > '~' || c == '\\':
			return nil, 0
		}
	}
	return nil, 0
}

// data looks at every name and every string of an event's data.
func (g *textGuard) data(d events.Data) error {
	b, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode %s: %w", d.EventType(), err)
	}
	dec := jsontext.NewDecoder(bytes.NewReader(b))
	for dec.StackDepth() > 0 || dec.InputOffset() == 0 {
		tok, err := dec.ReadToken()
		if err != nil {
			return fmt.Errorf("read %s: %w", d.EventType(), err)
		}
		if tok.Kind() != '"' {
			continue
		}
		ptr := dec.StackPointer()
		people := !strings.HasPrefix(string(ptr), envelopes) // an envelope is for programs
		if kind, n := dec.StackIndex(dec.StackDepth()); kind != '{' || n%2 == 0 {
			g.check(memberPath(ptr), tok.String(), people)
			continue
		}
		switch name := tok.String(); {
		case dec.StackDepth() == 1 && (name == "before" || name == "digest"):
			if err := dec.SkipValue(); err != nil {
				return fmt.Errorf("read %s: %w", d.EventType(), err)
			}
		default: // the path holds no name that a request may choose
			g.check(memberPath(ptr.Parent()), name, people)
		}
	}
	return nil
}

// envelopes is where a definition's event has its error envelope.
const envelopes = "/definition/errors/envelope/"

// memberPath names the member of the request from which that of an event comes.
func memberPath(ptr jsontext.Pointer) string {
	path := ""
	for tok := range ptr.Tokens() {
		_, err := strconv.Atoi(tok)
		switch {
		case path == "" && (tok == "after" || tok == "definition"):
		case path == "":
			path = tok
		case err == nil:
			path += "[" + tok + "]"
		default:
			path += "." + tok
		}
	}
	return path
}
