package events

import (
	"encoding/hex"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/oklog/ulid/v2"
)

// print prints the document of e by hand, in one pass: an import costs little else. It
// prints what the JSON package prints of it, byte for byte; ok is false when e cannot be
// printed, and the JSON package then says why.
func (s *shape) print(e *Event) (document []byte, ok bool) {
	p := printer{b: make([]byte, 0, 1024)}
	p.raw(`{"specversion":"1.0","type":"`)
	p.raw(s.name)
	p.raw(`","source":`)
	p.text(e.Source)
	p.raw(`,"subject":`)
	p.text(e.Aggregate.String())
	p.raw(`,"id":`)
	p.ulid(ulid.ULID(e.ID))
	p.raw(`,"time":`)
	p.time(e.Time)
	p.raw(`,"rev":`)
	p.b = strconv.AppendUint(p.b, e.Rev, 10)
	if !e.Prev.IsZero() {
		p.raw(`,"prev":`)
		p.hex(e.Prev[:])
	}
	if e.Command != "" {
		p.raw(`,"cmd":`)
		p.text(e.Command)
	}
	if s.since != "" {
		p.raw(`,"minrelease":`)
		p.text(string(s.since))
	}
	p.raw(`,"data":{"actor":{"kind":`)
	p.text(string(e.Actor.Kind))
	p.raw(`,"id":`)
	p.text(e.Actor.ID)
	p.raw(`}`)
	if e.IP.IsValid() {
		p.raw(`,"ip":`)
		p.text(e.IP.String())
	}
	if e.UserAgent != "" {
		p.raw(`,"user_agent":`)
		p.text(e.UserAgent)
	}
	if e.RequestID != "" {
		p.raw(`,"request_id":`)
		p.text(e.RequestID)
	}
	if e.Reason != "" {
		p.raw(`,"reason":`)
		p.text(e.Reason)
	}
	p.raw(`,"data":`)
	p.data(e.Data)
	p.raw(`}}`)
	return p.b, !p.bad
}

// printer appends to b. Once something cannot be printed, bad is set and stays set.
type printer struct {
	b   []byte
	bad bool
}

func (p *printer) raw(s string) { p.b = append(p.b, s...) }

// text prints a string.
func (p *printer) text(s string) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, err := jsontext.AppendQuote(p.b, s)
			p.b, p.bad = b, p.bad || err != nil
			return
		}
	}
	p.b = append(append(append(p.b, '"'), s...), '"')
}

func (p *printer) hex(b []byte) {
	p.b = append(hex.AppendEncode(append(p.b, '"'), b), '"')
}

func (p *printer) ulid(id ulid.ULID) {
	var text [ulid.EncodedSize]byte
	p.bad = id.MarshalTextTo(text[:]) != nil || p.bad
	p.b = append(append(append(p.b, '"'), text[:]...), '"')
}

func (p *printer) time(t Time) {
	p.bad = t.Validate() != nil || p.bad
	p.b = append(t.Std().AppendFormat(append(p.b, '"'), timeLayout), '"')
}

// other prints what has a form of its own in the JSON package.
func (p *printer) other(v any) {
	b, err := json.Marshal(v, encodeOptions)
	p.b, p.bad = append(p.b, b...), p.bad || err != nil
}

// data prints the data of one type: by hand what logs are full of.
func (p *printer) data(d Data) {
	switch d := d.(type) {
	case *KeyCreated:
		p.created(d)
		p.raw(`}`)
	case *KeyImported:
		p.created(&d.KeyCreated)
		if d.ImportedFrom != "" {
			p.raw(`,"imported_from":`)
			p.text(d.ImportedFrom)
		}
		if d.Status != "" {
			p.raw(`,"status":`)
			p.text(string(d.Status))
		}
		if d.RevokedAt != 0 {
			p.raw(`,"revoked_at":`)
			p.time(d.RevokedAt)
		}
		if d.RevokeCode != "" {
			p.raw(`,"revoke_code":`)
			p.text(string(d.RevokeCode))
		}
		p.raw(`}`)
	case *KeyRevoked:
		p.raw(`{"code":`)
		p.text(string(d.Code))
		p.raw(`}`)
	case *KeyExpired:
		p.raw(`{"expired_at":`)
		p.time(d.ExpiredAt)
		p.raw(`}`)
	case *KeyDisabled, *KeyEnabled:
		p.raw(`{}`)
	default:
		p.other(d)
	}
}

// created prints an object without its end.
func (p *printer) created(d *KeyCreated) {
	p.raw(`{"digest":`)
	p.hex(d.Digest[:])
	p.raw(`,"hint":`)
	p.text(d.Hint)
	p.raw(`,"name":`)
	p.text(d.Name)
	p.raw(`,"key_type":`)
	p.text(d.KeyType)
	if d.Environment != "" {
		p.raw(`,"environment":`)
		p.text(d.Environment)
	}
	printList(p, "scopes", d.Scopes, p.text)
	printList(p, "roles", d.Roles, func(r RoleID) { p.text(string(r)) })
	printList(p, "resources", d.Resources, func(r Resource) {
		p.raw(`{"kind":`)
		p.text(r.Kind)
		p.raw(`,"id":`)
		p.text(r.ID)
		p.raw(`}`)
	})
	if len(d.Allowlist) > 0 {
		p.raw(`,"allowlist":`)
		p.other(d.Allowlist)
	}
	if d.Limit != nil {
		p.raw(`,"limit":`)
		p.other(d.Limit)
	}
	if d.ExpiresAt != 0 {
		p.raw(`,"expires_at":`)
		p.time(d.ExpiresAt)
	}
	if len(d.Metadata) > 0 {
		p.raw(`,"metadata":`)
		p.other(d.Metadata)
	}
	if !d.RotatedFrom.IsZero() {
		p.raw(`,"rotated_from":`)
		p.text(d.RotatedFrom.String())
	}
}

// printList prints a member that is a list, unless the list is empty.
func printList[T any](p *printer, name string, list []T, one func(T)) {
	for i := range list {
		if i == 0 {
			p.raw(`,"`)
			p.raw(name)
			p.raw(`":[`)
		} else {
			p.raw(`,`)
		}
		one(list[i])
	}
	if len(list) > 0 {
		p.raw(`]`)
	}
}
