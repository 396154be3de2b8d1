package logtest

import (
	"encoding/binary"
	"net/netip"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// story writes a legal history, keeping the place of each aggregate. Its ids
// and times are counted, so one story always reads the same.
type story struct {
	writes []events.Write
	chains map[events.Aggregate]*events.Chain
	now    events.Time
}

func newStory(start events.Time) *story {
	return &story{chains: map[events.Aggregate]*events.Chain{}, now: start}
}

// add appends one event as an append of its own: write i+1 is stored at i+1.
func (s *story) add(a events.Aggregate, d events.Data, edit ...func(*events.Event)) *events.Event {
	c := s.chains[a]
	if c == nil {
		c = new(events.Chain)
		s.chains[a] = c
	}
	e := Event(a, d)
	e.ID, e.Time = events.EventID(s.ulid(0xe)), s.now
	for _, f := range edit {
		f(&e)
	}
	s.writes = append(s.writes, Stamp(c, e))
	c.Seq = events.Seq(len(s.writes))
	return &s.writes[len(s.writes)-1].Event
}

// ulid counts ids of one kind: the present time, the kind, the place in the story.
func (s *story) ulid(kind byte) (id [16]byte) {
	binary.BigEndian.PutUint64(id[:], uint64(s.now)<<16)
	id[8] = kind
	binary.BigEndian.PutUint32(id[12:], uint32(len(s.writes)+1))
	return id
}

func (s *story) newKey(ks events.KeyspaceID, tenant events.TenantID) events.KeyRef {
	return events.KeyRef{Keyspace: ks, Tenant: tenant, Key: events.KeyID(s.ulid(0x4b))}
}

// Records returns what a log stores when each of the writes is appended to it
// when it is empty: sequences from 1, stored at the event's time or the latest
// before it.
func Records(writes []events.Write) []events.Recorded {
	out := make([]events.Recorded, len(writes))
	var stored events.Time
	for i := range writes {
		e := writes[i].Event
		m, err := events.Encode(&e)
		if err != nil {
			panic(err)
		}
		stored = max(stored, e.Time)
		out[i] = m.Record(e, events.Seq(i+1), stored)
	}
	return out
}

// Samples returns one legal history that holds every type of the catalogue with
// every member set. It is always the same and starts on an empty log, one append
// a write. The golden files are made of it.
func Samples() []events.Write {
	s := newStory(events.Time(1767693600000)) // 2026-01-06T10:00:00.000Z
	from := func(e *events.Event) {
		e.Command = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
		e.Actor = events.Actor{Kind: events.ActorKey, ID: "key_01KE9Q5V00000000000000000A"}
		e.IP = netip.MustParseAddr("2001:db8::7")
		e.UserAgent = "curl/8.5.0"
		e.RequestID = "req-4711"
		e.Reason = `Kündigung: "Schlüssel" <alt> & neu, 日本 ` + "\u2028" + `\`
	}
	def := keyspace.Definition{
		Title: "Shop", Description: "Keys of the shop's API.",
		KeyTypes: []keyspace.KeyType{
			{Name: "secret", Environments: []string{"live", "test"}, Prefix: "sk_{environment}_", Checksum: keyspace.CRC32, Defaults: []string{"read"}, Description: "for servers"},
			{Name: "publishable", Environments: []string{"test"}, Prefix: "pk_test_", Alphabet: keyspace.Hex, Length: 40, Ceiling: []string{"read"}},
		},
		Credential: keyspace.Credential{Header: "X-Api-Key", Scheme: "Key"},
		HTTPSOnly:  true,
		CORS:       keyspace.CORS{Origins: []string{"https://app.example.com", "http://localhost:3000"}},
		Scopes: []keyspace.ScopeDef{
			{Name: "read", Description: "see"}, {Name: "write", Implies: []string{"read"}}, {Name: "orders:*", Level: "project"},
		},
		Grants:       keyspace.GrantRules{Required: true, Fixed: true, By: keyspace.GrantsByScopes},
		Resources:    []string{"project"},
		Expiry:       keyspace.ExpiryPolicy{Required: true, Max: "365d", Default: "1d", Choices: []keyspace.Span{"1d", "30d", "365d"}},
		Plans:        []keyspace.Plan{{Name: "basic", PerMinute: 60, Burst: 10}},
		Limit:        &keyspace.Limit{Plan: "basic"},
		TenantLimit:  &keyspace.Limit{PerMinute: 600, Burst: 100},
		Limits:       keyspace.LimitsExactElseLocal,
		LimitHeaders: keyspace.LimitHeaders{Style: keyspace.HeadersXRateLimit, Limit: "X-Limit", Remaining: "X-Left", Reset: "X-Reset", ResetAs: keyspace.ResetUnix},
		Checks:       []keyspace.Check{keyspace.CheckAddress, keyspace.CheckState, keyspace.CheckScope, keyspace.CheckResource, keyspace.CheckLimit},
		Errors: keyspace.ErrorRules{
			ContentType: "application/json; charset=utf-8",
			Envelope:    jsontext.Value(`{"error":{"code":"{code}","message":"{message}","fields":[{"path":"{issue.path}"}]},"meta":{"request_id":"{request_id}","v":1}}`),
			Answers: []keyspace.ErrorAnswer{
				{Reasons: []string{"key_missing", "key_malformed"}, Status: 401, Code: "authentication_required", Message: "Invalid or missing API key"},
				{Reasons: []string{"scope_missing"}, Message: "Want scope {scope}"},
			},
		},
		Staleness: keyspace.Staleness{MaxMillis: 5000, OnStale: "allow"},
		Ledger:    keyspace.LedgerSync,
	}
	ks := events.KeyspaceAggregate("shop")
	s.add(ks, &events.KeyspaceDefined{Definition: def}, from)
	s.now++
	wider := def
	wider.Title = "Shop, wider"
	s.add(ks, &events.KeyspaceDefined{Definition: wider, Before: &def}, from)
	tenant := events.TenantAggregate("shop", "acme")
	s.add(tenant, &events.TenantLimitUpdated{After: &keyspace.Limit{Plan: "basic"}}, from)
	s.add(tenant, &events.TenantLimitUpdated{Before: &keyspace.Limit{Plan: "basic"}, After: &keyspace.Limit{PerMinute: 1200, Burst: 2400}}, from)
	role := events.RoleAggregate("shop", "acme", "dev")
	s.add(role, &events.RoleDefined{Level: "tenant", Description: "Developers", Scopes: []string{"read"}}, from)
	s.add(role, &events.RoleDefined{Level: "project", Description: "Developers", Scopes: []string{"orders:*", "read"}, Before: []string{"read"}}, from)

	day := events.Time(86_400_000)
	old := s.newKey("shop", "acme")
	created := &events.KeyCreated{
		Digest: events.NewSecret("first").Digest(), Hint: "sk_live_8FjK", Name: "billing", KeyType: "secret", Environment: "live",
		Scopes: []string{"read", "write"}, Roles: []events.RoleID{"dev"}, Resources: []events.Resource{{Kind: "project", ID: "proj_1"}},
		Allowlist: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")},
		Limit:     &keyspace.Limit{PerMinute: 120, Burst: 20}, ExpiresAt: s.now + 30*day, Metadata: map[string]string{"team": "pay", "a": ""},
		RotatedFrom: events.KeyID(s.ulid(0x4a)),
	}
	k := old.Aggregate()
	s.add(k, created, from)
	s.now++
	s.add(k, &events.KeyScopesAssigned{Before: events.Grant{Scopes: created.Scopes, Roles: created.Roles}, After: events.Grant{Scopes: []string{"read"}}}, from)
	s.add(k, &events.KeyResourcesAssigned{Before: created.Resources, After: []events.Resource{{Kind: "project", ID: "proj_1"}, {Kind: "project", ID: "proj_2"}}}, from)
	s.add(k, &events.KeyAllowlistUpdated{Before: created.Allowlist, After: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/32")}}, from)
	s.add(k, &events.KeyLimitUpdated{Before: created.Limit, After: &keyspace.Limit{Plan: "basic"}}, from)
	s.add(k, &events.KeyExpiryChanged{Before: created.ExpiresAt, After: created.ExpiresAt + day}, from)
	s.add(k, &events.KeyRenamed{Before: events.Label{Name: created.Name, Metadata: created.Metadata}, After: events.Label{Name: "billing, old", Metadata: map[string]string{"team": "ops"}}}, from)
	s.now++
	s.add(k, &events.KeyDisabled{}, from)
	s.add(k, &events.KeyEnabled{}, from)
	next := s.newKey("shop", "acme")
	s.add(next.Aggregate(), &events.KeyCreated{Digest: events.NewSecret("second").Digest(), Hint: "sk_live_9GkL", Name: "billing", KeyType: "secret", RotatedFrom: old.Key}, from)
	end := s.now + day
	s.add(k, &events.KeyRotated{Successor: next.Key, Before: created.ExpiresAt + day, After: end}, from)
	other := s.newKey("shop", "globex")
	imported := *created
	imported.Digest, imported.RotatedFrom = events.NewSecret("third").Digest(), events.KeyID{}
	s.add(other.Aggregate(), &events.KeyImported{KeyCreated: imported, ImportedFrom: "the old gateway"}, from)
	s.add(other.Aggregate(), &events.KeyRevoked{Code: events.RevokeCompromise}, from)
	s.add(role, &events.RoleDeleted{}, from)
	who := events.ReaderAggregate(events.Actor{Kind: events.ActorKey, ID: next.Key.String()})
	s.add(who, &events.AuditQueried{Kind: "events", Filter: map[string]string{"key_id": old.Key.String(), "type": "key.revoked"}}, from)
	s.add(who, &events.AuditExported{Kind: "uses", Format: "csv", Filter: map[string]string{"tenant": "acme"}}, from)
	s.now = end
	s.add(k, &events.KeyExpired{ExpiredAt: end}, func(e *events.Event) { e.Actor.ID = "expirer" }) // by Keytrail itself: no address, no request
	s.add(who, &events.AuditExportEnded{Export: events.EventID{1: 7}, Complete: true, Rows: 3, First: 4, Last: 9, Digest: events.Hash{1, 2, 3},
		Gaps: &events.Gaps{Count: 2, UsesLost: 35, Unknown: true}}, from)
	return s.writes
}
