package verifier

import (
	"math"
	"net/netip"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// question is the body of a verify request. An absent member asks for less; one
// that is given and empty is refused, because a caller who did not fill in a
// variable would ask for less than was meant. Only key may be "": no key was
// presented.
type question struct {
	Key          string                    `json:"key"`
	Keyspace     member[events.KeyspaceID] `json:"keyspace"` // absent: every keyspace but the built-in one
	Scope        member[string]            `json:"scope"`
	Resource     member[events.Resource]   `json:"resource"`
	IP           member[string]            `json:"ip"`     // the client's address, as the caller sees it
	Scheme       member[string]            `json:"scheme"` // http or https: how the key came to the caller
	Cost         member[int64]             `json:"cost"`
	MinPosition  member[string]            `json:"min_position"`
	MaxStaleness member[string]            `json:"max_staleness"` // a duration, as "500ms" or "5s"
}

// member is a member of a body that may be left out.
type member[T any] struct {
	value T
	given bool
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (m *member[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	m.given = true
	return json.UnmarshalDecode(dec, &m.value)
}

// request checks the question and adds its faults to f, under the path given. A
// secret where it does not belong is one of them: the answer to it repeats nothing
// of the question, and it does not get into the ledger.
func (q *question) request(n *Node, path string, f *input.FieldErrors) Request {
	req := Request{Secret: events.NewSecret(q.Key), Keyspace: q.Keyspace.value, Scope: q.Scope.value, Resource: q.Resource.value}
	check := func(field string, err error) {
		if err != nil {
			f.Add(path+field, "invalid", err.Error())
		}
	}
	if q.Keyspace.given {
		check("keyspace", q.Keyspace.value.Validate())
	}
	if q.Scope.given {
		check("scope", keyspace.ValidScope(q.Scope.value))
	}
	if q.Resource.given {
		check("resource", q.Resource.value.Validate())
	}
	if q.IP.given {
		a, err := netip.ParseAddr(q.IP.value)
		if err != nil || a.Zone() != "" {
			f.Add(path+"ip", "invalid", "want an IPv4 or IPv6 address without a zone")
		}
		req.IP = a.Unmap()
	}
	if q.Scheme.given {
		req.Insecure = q.Scheme.value == "http"
		if !req.Insecure && q.Scheme.value != "https" {
			f.Add(path+"scheme", "invalid", "want http or https")
		}
	}
	if q.Cost.given {
		if q.Cost.value < 1 || q.Cost.value > math.MaxUint32 {
			f.Add(path+"cost", "invalid", "want 1 to 4294967295")
		}
		req.Cost = uint32(q.Cost.value)
	}
	if q.MinPosition.given {
		p, err := events.ParsePosition(q.MinPosition.value)
		check("min_position", err)
		req.MinPosition = p
	}
	if q.MaxStaleness.given {
		d, err := time.ParseDuration(q.MaxStaleness.value)
		if err != nil || d < time.Millisecond || d > 24*time.Hour {
			f.Add(path+"max_staleness", "invalid", `want a duration of 1ms to 24h, as "5s"`)
		}
		req.MaxStaleness = d
	}
	n.screen(f, path, req.Keyspace, req.Scope, req.Resource)
	return req
}

// ReadPlain implements api.PlainReader for one question.
func (q *question) ReadPlain(text []byte) bool {
	p := plain{text: text}
	var read question
	if !p.question(&read) || !p.end() {
		return false
	}
	*q = read
	return true
}

// batch is the body of a request with up to MaxBatch questions.
type batch struct {
	Requests []jsontext.Value `json:"requests"` // empty where the body was plain
	plain    []question       // room for them; after ReadPlain those that it read
}

// ReadPlain implements api.PlainReader for all questions of a batch.
func (b *batch) ReadPlain(text []byte) bool {
	p := plain{text: text}
	if !p.next('{') || string(p.string()) != "requests" || !p.next(':') || !p.next('[') {
		return false
	}
	n := 0
	for more := true; more; more = p.next(',') {
		if n == cap(b.plain) || !p.question(&b.plain[:n+1][n]) {
			return false
		}
		n++
	}
	if !p.next(']') || !p.next('}') || !p.end() {
		return false
	}
	b.plain = b.plain[:n]
	return true
}

// plain reads questions as nearly every client writes them: the members that are texts,
// each once and none empty, in characters of ASCII that need no escape. Of anything else
// it says that it is not plain, whether it is wrong or not: the strict reader of
// internal/api looks at it then, from its start.
type plain struct {
	text []byte
	at   int // of the next byte
}

// piece is a part of the text: from one place to before another.
type piece struct{ from, to int }

// next skips white space, and c if that is next, and reports whether it was.
func (p *plain) next(c byte) bool {
	if p.end() || p.text[p.at] != c {
		return false
	}
	p.at++
	return true
}

// end skips white space and reports whether nothing else is left.
func (p *plain) end() bool {
	for ; p.at < len(p.text); p.at++ {
		if c := p.text[p.at]; c != ' ' && c != '\t' && c != '\n' && c != '\r' {
			return false
		}
	}
	return true
}

// string returns the plain text in quotes that is next; nil when there is none.
func (p *plain) string() []byte {
	s, ok := p.piece()
	if !ok {
		return nil
	}
	return p.text[s.from:s.to]
}

func (p *plain) piece() (s piece, ok bool) {
	if !p.next('"') {
		return s, false
	}
	s.from = p.at
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case c == '"':
			s.to = p.at
			p.at++
			return s, true
		case c < ' ' || c > '~' || c == '\\':
			return s, false
		}
	}
	return s, false
}

// The texts of a question, in the order in which they are cut from one copy.
const (
	textKey = iota
	textKeyspace
	textScope
	textKind
	textID
	textIP
	textScheme
	textMinPosition
	textMaxStaleness
	texts
	resource = texts // an object, of textKind and textID
)

func textOf(name []byte) int {
	switch string(name) {
	case "key":
		return textKey
	case "keyspace":
		return textKeyspace
	case "scope":
		return textScope
	case "resource":
		return resource
	case "ip":
		return textIP
	case "scheme":
		return textScheme
	case "min_position":
		return textMinPosition
	case "max_staleness":
		return textMaxStaleness
	}
	return -1
}

// question reads the object that is next into q, if it is plain.
func (p *plain) question(q *question) bool {
	var at [texts]piece
	if !p.next('{') {
		return false
	}
	for more := !p.next('}'); more; {
		name := p.string()
		if !p.next(':') {
			return false
		}
		switch t := textOf(name); {
		case t == resource:
			if !p.resource(&at) {
				return false
			}
		case t < 0 || !p.member(&at[t]):
			return false
		}
		if more = p.next(','); !more && !p.next('}') {
			return false
		}
	}
	// The secret is a copy of its own: the others are kept with the use.
	key := string(p.text[at[textKey].from:at[textKey].to])
	var buf [256]byte
	all := buf[:0]
	for _, s := range at[textKeyspace:] {
		all = append(all, p.text[s.from:s.to]...)
	}
	rest := string(all)
	cut := func(t int) (m member[string]) {
		n := at[t].to - at[t].from
		m.value, m.given = rest[:n], n > 0
		rest = rest[n:]
		return m
	}
	ks, scope, kind, id := cut(textKeyspace), cut(textScope), cut(textKind), cut(textID)
	*q = question{
		Key: key, Keyspace: member[events.KeyspaceID]{events.KeyspaceID(ks.value), ks.given}, Scope: scope,
		Resource: member[events.Resource]{events.Resource{Kind: kind.value, ID: id.value}, kind.given},
		IP:       cut(textIP), Scheme: cut(textScheme), MinPosition: cut(textMinPosition), MaxStaleness: cut(textMaxStaleness),
	}
	return true
}

// member reads a text that is not empty, and that was not there before.
func (p *plain) member(at *piece) bool {
	s, ok := p.piece()
	if !ok || s.from == s.to || at.to > 0 {
		return false
	}
	*at = s
	return true
}

// resource reads an object that has a kind and an id.
func (p *plain) resource(at *[texts]piece) bool {
	if !p.next('{') {
		return false
	}
	for range 2 {
		name := string(p.string())
		t := textKind
		if name == "id" {
			t = textID
		} else if name != "kind" {
			return false
		}
		if !p.next(':') || !p.member(&at[t]) {
			return false
		}
		if at[textKind].to > 0 != (at[textID].to > 0) && !p.next(',') {
			return false
		}
	}
	return p.next('}')
}
