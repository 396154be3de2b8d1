package events

import (
	"net/netip"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events/keyspace"
)

// data reads the data of one type: by hand what logs are full of.
func (s *scanner) data(d Data) {
	switch d := d.(type) {
	case *KeyCreated:
		s.need(`{`)
		s.created(d)
		s.need(`}`)
	case *KeyImported:
		s.need(`{`)
		s.created(&d.KeyCreated)
		if s.member(`"imported_from":`) {
			d.ImportedFrom = s.word()
		}
		if s.member(`"status":`) {
			d.Status = Status(s.word())
		}
		if s.member(`"revoked_at":`) {
			d.RevokedAt = s.time()
		}
		if s.member(`"revoke_code":`) {
			d.RevokeCode = RevokeCode(s.word())
		}
		s.need(`}`)
	case *KeyScopesAssigned:
		s.need(`{"before":{`)
		s.grant(&d.Before.Scopes, &d.Before.Roles)
		s.need(`},"after":{`)
		s.grant(&d.After.Scopes, &d.After.Roles)
		s.need(`}}`)
	case *KeyRotated:
		s.need(`{"successor":`)
		d.Successor = s.key()
		if s.member(`"before":`) {
			d.Before = s.time()
		}
		s.need(`,"after":`)
		d.After = s.time()
		s.need(`}`)
	case *KeyRevoked:
		s.need(`{"code":`)
		d.Code = RevokeCode(s.word())
		s.need(`}`)
	case *KeyExpired:
		s.need(`{"expired_at":`)
		d.ExpiredAt = s.time()
		s.need(`}`)
	case *KeyDisabled, *KeyEnabled:
		s.need(`{}`)
	default: // it ends where the document ends
		end := len(s.b) - len(`}}`)
		if s.bad || end < s.i || json.Unmarshal(s.b[s.i:end], d, decodeOptions) != nil {
			s.bad = true
			return
		}
		s.i = end
	}
}

func (s *scanner) created(d *KeyCreated) {
	s.need(`"digest":`)
	s.hex(d.Digest[:])
	s.need(`,"hint":`)
	d.Hint = s.text()
	s.need(`,"name":`)
	d.Name = s.text()
	s.need(`,"key_type":`)
	d.KeyType = s.word()
	if s.member(`"environment":`) {
		d.Environment = s.word()
	}
	s.grant(&d.Scopes, &d.Roles)
	if s.member(`"resources":`) {
		d.Resources = list(s, func() (r Resource) {
			s.need(`{"kind":`)
			r.Kind = s.word()
			s.need(`,"id":`)
			r.ID = s.word()
			s.need(`}`)
			return r
		})
	}
	if s.member(`"allowlist":`) {
		d.Allowlist = list(s, func() netip.Prefix {
			p, err := netip.ParsePrefix(s.word())
			s.bad = s.bad || err != nil
			return p
		})
	}
	if s.member(`"limit":`) {
		d.Limit = s.limit()
	}
	if s.member(`"expires_at":`) {
		d.ExpiresAt = s.time()
	}
	if s.member(`"metadata":`) {
		d.Metadata = s.metadata()
	}
	if s.member(`"rotated_from":`) {
		d.RotatedFrom = s.key()
	}
}

func (s *scanner) grant(scopes *[]string, roles *[]RoleID) {
	if s.member(`"scopes":`) {
		*scopes = list(s, s.word)
	}
	if s.member(`"roles":`) {
		*roles = list(s, func() RoleID { return RoleID(s.word()) })
	}
}

func (s *scanner) limit() *keyspace.Limit {
	l := new(keyspace.Limit)
	s.need(`{`)
	if s.member(`"plan":`) {
		l.Plan = s.word()
	}
	if s.member(`"per_minute":`) {
		l.PerMinute = s.number()
	}
	if s.member(`"burst":`) {
		l.Burst = s.number()
	}
	s.need(`}`)
	return l
}

// list reads a list that is not empty: Encode leaves out one that is.
func list[T any](s *scanner, one func() T) (out []T) {
	s.need(`[`)
	for !s.bad {
		out = append(out, one())
		if s.at(s.i, `]`) {
			break
		}
		s.need(`,`)
	}
	s.need(`]`)
	return out
}

// metadata reads an object of strings that is not empty.
func (s *scanner) metadata() map[string]string {
	m := map[string]string{}
	s.need(`{`)
	for !s.bad {
		name := s.word()
		s.need(`:`)
		if _, again := m[name]; again {
			s.bad = true
		}
		m[name] = s.text()
		if s.at(s.i, `}`) {
			break
		}
		s.need(`,`)
	}
	s.need(`}`)
	return m
}
