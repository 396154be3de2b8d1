package logtest

import (
	"net/netip"
	"slices"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

const maxTime events.Time = 253402300799999 // the last instant of the year 9999

const textMax = 12 // the bounds are table-tested; here the alphabet matters

// The grammars of the ids, beside the code that checks them.
const (
	kindPattern     = `[a-z][a-z0-9_]{0,8}`
	namePattern     = `[A-Za-z0-9_][A-Za-z0-9_-]{0,12}`
	keyspacePattern = `[a-z][a-z0-9-]{0,12}`
	scopePattern    = `[A-Za-z0-9_][A-Za-z0-9_.:/*-]{0,12}`
	resourcePattern = `[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,12}`
)

// genText draws text with what JSON, headers and logs trip over, but no control
// characters.
func genText(minLen int) *rapid.Generator[string] {
	r := rapid.RuneFrom([]rune("aZ09 _-.\"'\\/<>&=%\u00e9\u65e5\u2028\u2029\ufeff\ufffd\U0001f511"), unicode.L, unicode.N, unicode.So)
	return rapid.StringOfN(r, minLen, textMax, -1)
}

func genTime() *rapid.Generator[events.Time] {
	return rapid.Map(rapid.Int64Range(1, int64(maxTime)), func(i int64) events.Time { return events.Time(i) })
}

// genMaybeTime also draws the zero Time, for "never".
func genMaybeTime() *rapid.Generator[events.Time] {
	return rapid.OneOf(rapid.Just(events.Time(0)), genTime())
}

func gen16[T ~[16]byte]() *rapid.Generator[T] {
	return rapid.Custom(func(t *rapid.T) (id T) {
		copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		id[15] |= 1 // never zero
		return id
	})
}

func gen32[T ~[32]byte]() *rapid.Generator[T] {
	return rapid.Custom(func(t *rapid.T) (h T) {
		copy(h[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
		h[31] |= 1
		return h
	})
}

func genString[T ~string](pattern string) *rapid.Generator[T] {
	return rapid.Map(rapid.StringMatching(pattern), func(s string) T { return T(s) })
}

// genSet draws a sorted list without repeats, nil when it is empty.
func genSet[T comparable](of *rapid.Generator[T], compare func(a, b T) int, atMost int) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T {
		list := rapid.SliceOfNDistinct(of, 0, atMost, rapid.ID[T]).Draw(t, "list")
		slices.SortFunc(list, compare)
		if len(list) == 0 {
			return nil
		}
		return list
	})
}

func compareStrings[T ~string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func genScopes() *rapid.Generator[[]string] {
	return genSet(rapid.StringMatching(scopePattern), compareStrings, 4)
}

func genRoles() *rapid.Generator[[]events.RoleID] {
	return genSet(genString[events.RoleID](namePattern), compareStrings, 3)
}

func genResources() *rapid.Generator[[]events.Resource] {
	one := rapid.Custom(func(t *rapid.T) events.Resource {
		return events.Resource{Kind: rapid.StringMatching(kindPattern).Draw(t, "kind"), ID: rapid.StringMatching(resourcePattern).Draw(t, "id")}
	})
	return genSet(one, events.CompareResources, 4)
}

func genAddr() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		n := rapid.SampledFrom([]int{4, 16}).Draw(t, "family")
		a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "addr"))
		return a
	})
}

func genAllowlist() *rapid.Generator[[]netip.Prefix] {
	one := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := genAddr().Draw(t, "addr").Unmap()
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	})
	one = one.Filter(func(p netip.Prefix) bool { return !p.Addr().Is4In6() }) // masking can make one
	return genSet(one, events.ComparePrefixes, 4)
}

func genLimit() *rapid.Generator[*keyspace.Limit] {
	number := rapid.Int64Range(1, keyspace.MaxPerMinute)
	return rapid.OneOf(
		rapid.Just[*keyspace.Limit](nil),
		rapid.Custom(func(t *rapid.T) *keyspace.Limit {
			return &keyspace.Limit{Plan: rapid.StringMatching(kindPattern).Draw(t, "plan")}
		}),
		rapid.Custom(func(t *rapid.T) *keyspace.Limit {
			return &keyspace.Limit{PerMinute: number.Draw(t, "per minute"), Burst: number.Draw(t, "burst")}
		}),
	)
}

func genLabel() *rapid.Generator[events.Label] {
	return rapid.Custom(func(t *rapid.T) events.Label {
		m := rapid.MapOfN(genText(1), genText(0), 0, 3).Draw(t, "metadata")
		if len(m) == 0 {
			m = nil
		}
		return events.Label{Name: genText(1).Draw(t, "name"), Metadata: m}
	})
}

func genGrant() *rapid.Generator[events.Grant] {
	return rapid.Custom(func(t *rapid.T) events.Grant {
		return events.Grant{Scopes: genScopes().Draw(t, "scopes"), Roles: genRoles().Draw(t, "roles")}
	})
}

func genFilter() *rapid.Generator[map[string]string] {
	return rapid.Map(rapid.MapOfN(rapid.StringMatching(kindPattern), genText(0), 0, 3), func(m map[string]string) map[string]string {
		if len(m) == 0 {
			return nil
		}
		return m
	})
}

// GenDefinition draws a keyspace's definition that can be applied.
func GenDefinition() *rapid.Generator[keyspace.Definition] {
	return rapid.Custom(func(t *rapid.T) keyspace.Definition {
		d := keyspace.Definition{
			Title: genText(0).Draw(t, "title"), Description: genText(0).Draw(t, "description"),
			Resources: genSet(rapid.StringMatching(kindPattern), compareStrings, 3).Draw(t, "resources"),
			Staleness: keyspace.Staleness{
				MaxMillis: rapid.Int64Range(0, 86_400_000).Draw(t, "staleness"),
				OnStale:   rapid.SampledFrom([]string{"", "deny", "allow"}).Draw(t, "on stale"),
			},
			Limits: rapid.SampledFrom([]keyspace.LimitsMode{"", keyspace.LimitsLocal, keyspace.LimitsExact, keyspace.LimitsExactElseLocal}).Draw(t, "limits"),
			Ledger: rapid.SampledFrom([]keyspace.LedgerMode{"", keyspace.LedgerAsync, keyspace.LedgerSync}).Draw(t, "ledger"),
		}
		d.CORS.Origins = rapid.SampledFrom([][]string{nil, {keyspace.AnyOrigin}, {"https://app.example.com"}, {"http://localhost:3000", "https://[::1]:8443"}}).Draw(t, "origins")
		if rapid.Bool().Draw(t, "own header") {
			d.Credential = keyspace.Credential{Header: rapid.StringMatching(`X-[A-Z][a-z]{2,8}`).Draw(t, "header"), Scheme: rapid.StringMatching(`([A-Z][a-z]{2,6})?`).Draw(t, "scheme")}
		}
		names := rapid.SliceOfNDistinct(rapid.StringMatching(scopePattern), 0, 6, rapid.ID[string]).Draw(t, "scopes")
		some := func(label string) []string {
			if len(names) == 0 || rapid.Bool().Draw(t, label+" none") {
				return nil
			}
			return rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, len(names), rapid.ID[string]).Draw(t, label)
		}
		for _, n := range names {
			d.Scopes = append(d.Scopes, keyspace.ScopeDef{Name: n, Description: genText(0).Draw(t, "scope text"), Implies: some("implies"),
				Level: rapid.SampledFrom(append([]string{"", keyspace.LevelTenant}, d.Resources...)).Draw(t, "level")})
		}
		for i := range rapid.IntRange(1, 3).Draw(t, "key types") {
			kt := keyspace.KeyType{
				Name: "type" + string(rune('a'+i)), Prefix: string(rune('a'+i)) + "_", Defaults: some("defaults"),
				Environments: rapid.SampledFrom([][]string{nil, {"live"}, {"live", "test"}}).Draw(t, "environments"),
				Length:       rapid.SampledFrom([]int{0, 30, 200}).Draw(t, "length"),
				Alphabet:     rapid.SampledFrom([]keyspace.Alphabet{"", keyspace.Base62, keyspace.Hex, keyspace.Base58, keyspace.Base32, keyspace.Base64URL}).Draw(t, "alphabet"),
				Checksum:     rapid.SampledFrom([]keyspace.Checksum{"", keyspace.CRC32}).Draw(t, "checksum"),
				Description:  genText(0).Draw(t, "type text"),
			}
			if kt.Environments != nil {
				kt.Prefix += rapid.SampledFrom([]string{"", "{environment}_", "{environment}"}).Draw(t, "template")
			}
			if rapid.Bool().Draw(t, "ceiling") {
				kt.Ceiling = slices.Clone(kt.Defaults)
			}
			d.KeyTypes = append(d.KeyTypes, kt)
		}
		if rapid.Bool().Draw(t, "plans") {
			d.Plans = []keyspace.Plan{{Name: "basic", PerMinute: 60, Burst: 5}, {Name: "pro", PerMinute: keyspace.MaxPerMinute, Burst: 1}}
			d.Limit = rapid.SampledFrom([]*keyspace.Limit{nil, {Plan: "pro"}, {PerMinute: 7, Burst: 3}}).Draw(t, "limit")
		}
		d.Expiry = rapid.SampledFrom([]keyspace.ExpiryPolicy{{}, {Required: true}, {Max: "90d"}, {Max: "365d", Default: "30d"},
			{Choices: []keyspace.Span{keyspace.Never, "30d", "90d", "365d"}}, {Required: true, Max: "1d12h", Default: "36h", Choices: []keyspace.Span{"36h", "30m"}}}).Draw(t, "expiry")
		d.Grants = rapid.SampledFrom([]keyspace.GrantRules{{}, {Required: true}, {Fixed: true, By: keyspace.GrantsByRoles}, {By: keyspace.GrantsByScopes}}).Draw(t, "grants")
		d.LimitHeaders = rapid.SampledFrom([]keyspace.LimitHeaders{{}, {Style: keyspace.HeadersIETF}, {Style: keyspace.HeadersNone}, {ResetAs: keyspace.ResetUnix},
			{Style: keyspace.HeadersXRateLimit, Remaining: "X-RateLimit-Remaining", Reset: "X-RateLimit-Reset", ResetAs: keyspace.ResetSeconds}}).Draw(t, "limit headers")
		d.Errors = genErrors().Draw(t, "errors")
		d.Checks = rapid.SampledFrom([][]keyspace.Check{nil, {keyspace.CheckAddress, keyspace.CheckState, keyspace.CheckScope, keyspace.CheckResource, keyspace.CheckLimit}}).Draw(t, "checks")
		d.HTTPSOnly = rapid.Bool().Draw(t, "https only")
		d.TenantLimit = rapid.SampledFrom([]*keyspace.Limit{nil, {PerMinute: 70, Burst: 30}}).Draw(t, "tenant limit")
		return d
	})
}

// genErrors draws error rules; an envelope is in the form that the log gives it.
func genErrors() *rapid.Generator[keyspace.ErrorRules] {
	return rapid.Custom(func(t *rapid.T) keyspace.ErrorRules {
		e := keyspace.ErrorRules{Envelope: rapid.SampledFrom([]jsontext.Value{nil, jsontext.Value(`{}`), jsontext.Value(`{"code":"{code}","é":[1e400,-0,null,true,""],"s":"{{{status}"}`),
			jsontext.Value(`{"error":{"code":"{code}","message":"{message}"},"meta":{"request_id":"{request_id}"}}`),
			jsontext.Value(`{"z":"{status}","a":"{field}","issues":[{"path":"{issue.path}","code":"{issue.code}"}]}`)}).Draw(t, "envelope")}
		if e.Envelope != nil {
			e.ContentType = rapid.SampledFrom([]string{"", "application/json", "application/vnd.shop+json; charset=utf-8"}).Draw(t, "content type")
		}
		reasons := rapid.SliceOfNDistinct(rapid.SampledFrom(keyspace.FailureReasons()), 0, 4, rapid.ID[string]).Draw(t, "reasons")
		for i, r := range reasons {
			if i == 1 {
				e.Answers[0].Reasons = append(e.Answers[0].Reasons, r)
				continue
			}
			e.Answers = append(e.Answers, keyspace.ErrorAnswer{Reasons: []string{r}, Status: rapid.SampledFrom([]int{0, 400, 429, 599}).Draw(t, "status"),
				Code:    rapid.StringMatching(`([a-z][a-z_.:-]{0,8})?`).Draw(t, "code"),
				Message: rapid.SampledFrom([]string{"", "no", "want {scope} of {resource} in {retry_after} s {{}", "nön"}).Draw(t, "message")})
		}
		return e
	})
}

func drawCreated(t *rapid.T) events.KeyCreated {
	label, grant := genLabel().Draw(t, "label"), genGrant().Draw(t, "grant")
	c := events.KeyCreated{
		Digest: gen32[events.Digest]().Draw(t, "digest"), Hint: genText(0).Draw(t, "hint"), Name: label.Name, Metadata: label.Metadata,
		KeyType: rapid.StringMatching(kindPattern).Draw(t, "key type"), Scopes: grant.Scopes, Roles: grant.Roles,
		Resources: genResources().Draw(t, "resources"), Allowlist: genAllowlist().Draw(t, "allowlist"),
		Limit: genLimit().Draw(t, "limit"), ExpiresAt: genMaybeTime().Draw(t, "expires"),
		Environment: rapid.SampledFrom([]string{"", "live", "test"}).Draw(t, "environment"),
	}
	if rapid.Bool().Draw(t, "rotated") {
		c.RotatedFrom = gen16[events.KeyID]().Draw(t, "rotated from")
	}
	return c
}

// drawData draws valid data of type typ and an aggregate that it may belong to.
func drawData(t *rapid.T, typ events.Type) (events.Data, events.Aggregate) {
	ks := genString[events.KeyspaceID](keyspacePattern).Draw(t, "keyspace")
	tenant := genString[events.TenantID](namePattern).Draw(t, "tenant")
	key := events.KeyAggregate(ks, tenant, gen16[events.KeyID]().Draw(t, "key"))
	role := events.RoleAggregate(ks, tenant, genString[events.RoleID](namePattern).Draw(t, "role"))
	who := events.ReaderAggregate(events.Actor{ID: rapid.StringMatching(namePattern).Draw(t, "reader")})
	switch typ {
	case events.TypeKeyspaceDefined:
		d := &events.KeyspaceDefined{Definition: GenDefinition().Draw(t, "definition")}
		if rapid.Bool().Draw(t, "before") {
			before := GenDefinition().Draw(t, "before")
			d.Before = &before
		}
		return d, events.KeyspaceAggregate(ks)
	case events.TypeRoleDefined:
		scopes := genScopes().Draw(t, "scopes")
		if scopes == nil {
			scopes = []string{}
		}
		return &events.RoleDefined{Level: rapid.SampledFrom([]string{"", "tenant", "project"}).Draw(t, "level"),
			Description: genText(0).Draw(t, "description"), Scopes: scopes, Before: genScopes().Draw(t, "before")}, role
	case events.TypeRoleDeleted:
		return &events.RoleDeleted{}, role
	case events.TypeTenantLimitUpdated:
		return &events.TenantLimitUpdated{Before: genLimit().Draw(t, "before"), After: genLimit().Draw(t, "after")}, events.TenantAggregate(ks, tenant)
	case events.TypeKeyCreated:
		c := drawCreated(t)
		return &c, key
	case events.TypeKeyImported:
		return drawImported(t, drawCreated(t)), key
	case events.TypeKeyScopesAssigned:
		return &events.KeyScopesAssigned{Before: genGrant().Draw(t, "before"), After: genGrant().Draw(t, "after")}, key
	case events.TypeKeyResourcesAssigned:
		return &events.KeyResourcesAssigned{Before: genResources().Draw(t, "before"), After: genResources().Draw(t, "after")}, key
	case events.TypeKeyAllowlistUpdated:
		return &events.KeyAllowlistUpdated{Before: genAllowlist().Draw(t, "before"), After: genAllowlist().Draw(t, "after")}, key
	case events.TypeKeyLimitUpdated:
		return &events.KeyLimitUpdated{Before: genLimit().Draw(t, "before"), After: genLimit().Draw(t, "after")}, key
	case events.TypeKeyExpiryChanged:
		return &events.KeyExpiryChanged{Before: genMaybeTime().Draw(t, "before"), After: genMaybeTime().Draw(t, "after")}, key
	case events.TypeKeyRenamed:
		return &events.KeyRenamed{Before: genLabel().Draw(t, "before"), After: genLabel().Draw(t, "after")}, key
	case events.TypeKeyDisabled:
		return &events.KeyDisabled{}, key
	case events.TypeKeyEnabled:
		return &events.KeyEnabled{}, key
	case events.TypeKeyRotated:
		before := genMaybeTime().Draw(t, "before")
		latest := before
		if before == 0 {
			latest = maxTime
		}
		return &events.KeyRotated{Successor: gen16[events.KeyID]().Draw(t, "successor"), Before: before,
			After: events.Time(rapid.Int64Range(1, int64(latest)).Draw(t, "after"))}, key
	case events.TypeKeyRevoked:
		return &events.KeyRevoked{Code: rapid.SampledFrom(revokeCodes).Draw(t, "code")}, key
	case events.TypeKeyExpired:
		return &events.KeyExpired{ExpiredAt: genTime().Draw(t, "expired")}, key
	case events.TypeAuditQueried:
		return &events.AuditQueried{Kind: rapid.StringMatching(kindPattern).Draw(t, "kind"), Filter: genFilter().Draw(t, "filter")}, who
	case events.TypeAuditExported:
		return &events.AuditExported{Kind: rapid.StringMatching(kindPattern).Draw(t, "kind"), Format: "csv", Filter: genFilter().Draw(t, "filter")}, who
	case events.TypeAuditExportEnded:
		d := &events.AuditExportEnded{Export: gen16[events.EventID]().Draw(t, "export"), Complete: rapid.Bool().Draw(t, "complete")}
		if d.Complete {
			d.Digest = events.Hash{1: 1}
		}
		if d.Rows = rapid.Uint64Range(0, 1<<40).Draw(t, "rows"); d.Rows > 0 && rapid.Bool().Draw(t, "of the lifecycle") {
			d.First = events.Seq(rapid.Uint64Range(1, 1<<40).Draw(t, "first"))
			d.Last = d.First + events.Seq(d.Rows)
		}
		if rapid.Bool().Draw(t, "gaps") {
			d.Gaps = &events.Gaps{Count: rapid.Uint64Range(1, 1<<40).Draw(t, "gaps"), UsesLost: rapid.Uint64Range(0, 1<<40).Draw(t, "lost"), Unknown: rapid.Bool().Draw(t, "unknown")}
		}
		return d, who
	}
	panic("logtest: no generator for " + string(typ))
}

var revokeCodes = []events.RevokeCode{events.RevokeUnspecified, events.RevokeCompromise, events.RevokeAffiliation,
	events.RevokeSuperseded, events.RevokeCessation, events.RevokePrivilegeGone}

// Types lists the catalogue in the order of the names.
func Types() []events.Type { return events.Types() }

// GenEvent draws a valid event of any type on its own: it encodes, but follows
// no history.
func GenEvent() *rapid.Generator[events.Event] {
	return rapid.Custom(func(t *rapid.T) events.Event {
		d, a := drawData(t, rapid.SampledFrom(Types()).Draw(t, "type"))
		e := events.Event{
			ID: gen16[events.EventID]().Draw(t, "id"), Aggregate: a, Time: genTime().Draw(t, "time"), Rev: 1,
			Source: rapid.StringMatching(`/keytrail/[a-z]{1,8}/[a-z0-9]{1,4}`).Draw(t, "source"),
			Actor:  events.Actor{Kind: events.ActorSystem, ID: "init"},
			Reason: genText(0).Draw(t, "reason"), UserAgent: genText(0).Draw(t, "user agent"), RequestID: genText(0).Draw(t, "request id"),
			Data: d,
		}
		if rapid.Bool().Draw(t, "later") {
			e.Rev, e.Prev = rapid.Uint64Range(2, events.MaxRev).Draw(t, "rev"), gen32[events.Hash]().Draw(t, "prev")
		}
		if rapid.Bool().Draw(t, "by a key") {
			e.Actor = events.Actor{Kind: events.ActorKey, ID: gen16[events.KeyID]().Draw(t, "actor").String()}
			e.IP = genAddr().Draw(t, "ip")
			e.Command = gen32[events.Hash]().Draw(t, "command").String()
		}
		return e
	})
}

// drawImported draws the import of the key c, which stood in any way where it
// comes from.
func drawImported(t *rapid.T, c events.KeyCreated) *events.KeyImported {
	d := &events.KeyImported{KeyCreated: c, ImportedFrom: genText(0).Draw(t, "from")}
	switch rapid.IntRange(0, 3).Draw(t, "stood") {
	case 1:
		d.Status = events.StatusDisabled
	case 2:
		d.Status, d.RevokeCode = events.StatusRevoked, rapid.SampledFrom([]events.RevokeCode{events.RevokeUnspecified, events.RevokeCompromise}).Draw(t, "code")
		d.RevokedAt = genMaybeTime().Draw(t, "revoked")
	}
	return d
}
