package audit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

func filter(t testing.TB, kind Kind, given map[string]string) *Filter {
	t.Helper()
	f, faults := ParseFilter(kind, given)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return &f
}

// printArgs is the parameters in order, as name=value.
func printArgs(args []any) string {
	var out []string
	for _, a := range args {
		n := a.(driver.NamedValue)
		out = append(out, fmt.Sprintf("%s=%v", n.Name, n.Value))
	}
	return strings.Join(out, " ")
}

func TestStatements(t *testing.T) {
	restricted := ScopeOf(&events.Principal{Keyspaces: []events.KeyspaceID{"scribe"}, Tenants: []events.TenantID{"acme", "globex"}})
	all := ScopeOf(&events.Principal{})
	key := keyID(1).String()
	const scoped = "keyspace != {builtin:String} AND keyspace IN {scope_keyspaces:Array(String)} AND tenant IN {scope_tenants:Array(String)}"
	const scopeArgs = "builtin=keytrail scope_keyspaces=[scribe] scope_tenants=[acme globex]"
	check := func(name, sql string, args []any, wantSQL, wantArgs string) {
		t.Helper()
		if sql != wantSQL {
			t.Errorf("%s:\n got %s\nwant %s", name, sql, wantSQL)
		}
		if got := printArgs(args); got != wantArgs {
			t.Errorf("%s:\n got %s\nwant %s", name, got, wantArgs)
		}
	}
	const within = "seq <= if(stream = 'lifecycle', {bound:UInt64}, {bound_reads:UInt64})"
	const newest = " ORDER BY stored DESC, stream DESC, seq DESC LIMIT "
	bound := trailBound{77, 5}
	sql, args := eventsPage(all, filter(t, KindEvents, nil), Page{Limit: 50}, bound)
	check("all events", sql, args, "SELECT "+eventColumns+" FROM events WHERE "+within+newest+"51", "bound=77 bound_reads=5")
	sql, args = eventsPage(Scope{}, filter(t, KindEvents, nil), Page{Limit: 50}, bound)
	check("no scope", sql, args, "SELECT "+eventColumns+" FROM events WHERE 0 AND keyspace != {builtin:String} AND "+within+newest+"51", "builtin=keytrail bound=77 bound_reads=5")
	sql, args = eventsPage(restricted, filter(t, KindEvents, map[string]string{"keyspace": "scribe", "tenant": "acme", "key": key, "actor": "expirer",
		"type": "key.revoked", "request_id": "req_1", "ip": "203.0.113.0/24", "from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"}),
		Page{Limit: 2, After: &Cursor{time: 8, n: 1, seq: 9}}, bound)
	check("filtered events", sql, args, "SELECT "+eventColumns+" FROM events WHERE "+scoped+" AND keyspace = {keyspace:String} AND tenant = {tenant:String} AND "+
		"kind = 'key' AND aggregate_id = {key:String} AND actor_id = {actor:String} AND type = {type:String} AND request_id = {request_id:String} AND "+
		"ip >= toIPv6({ip_from:String}) AND ip <= toIPv6({ip_to:String}) AND time >= fromUnixTimestamp64Milli({from:Int64}) AND "+
		"time < fromUnixTimestamp64Milli({to:Int64}) AND "+within+" AND "+
		"stored <= fromUnixTimestamp64Milli({after_stored:Int64}) AND (stored, stream, seq) < (fromUnixTimestamp64Milli({after_stored:Int64}), {after_stream:String}, {after_seq:UInt64})"+newest+"3",
		scopeArgs+" keyspace=scribe tenant=acme key="+key+" actor=expirer type=key.revoked request_id=req_1 ip_from=::ffff:203.0.113.0 ip_to=::ffff:203.0.113.255 "+
			"from=1767225600000 to=1769904000000 bound=77 bound_reads=5 after_stored=8 after_stream=reads after_seq=9")
	sql, args = usesPage(restricted, filter(t, KindUses, map[string]string{"key": key, "outcome": "denied", "reason": "rate_limited", "scope": "a:b", "endpoint": "GET /v1/keys/{id}", "request_id": "req_1", "node": "n1", "ip": "2001:db8::1"}),
		Page{Limit: 2, After: &Cursor{time: 5, seq: 4, n: 3}}, 77)
	check("filtered uses", sql, args, "SELECT "+useColumns+" FROM uses WHERE "+scoped+" AND key_id = {key:String} AND request_id = {request_id:String} AND ip = toIPv6({ip:String}) AND reason != 'ok' AND "+
		"reason = {reason:String} AND scope = {scope:String} AND endpoint = {endpoint:String} AND node = {node:String} AND seq <= {bound:UInt64} AND time <= fromUnixTimestamp64Milli({after_time:Int64}) AND "+
		"(time, seq, n) < (fromUnixTimestamp64Milli({after_time:Int64}), {after_seq:UInt64}, {after_n:UInt64}) ORDER BY time DESC, seq DESC, n DESC LIMIT 3",
		scopeArgs+" key="+key+" request_id=req_1 ip=2001:db8::1 reason=rate_limited scope=a:b endpoint=GET /v1/keys/{id} node=n1 bound=77 after_time=5 after_seq=4 after_n=3")
	sql, args = usagePage(restricted, filter(t, KindUsage, map[string]string{"from": "2026-01-01T10:30:00Z"}), Page{Limit: 1})
	const hour, when = "toUnixTimestamp64Milli(toDateTime64(hour, 3, 'UTC'))", "toUnixTimestamp64Milli(time)"
	check("usage per hour", sql, args, "SELECT intDiv(ms, 3600000) * 3600000 AS at, reason, sum(n) AS count FROM ("+
		"SELECT "+hour+" AS ms, reason, toUInt64(n) AS n FROM use_hour WHERE "+scoped+" AND "+hour+" >= {from0:Int64} UNION ALL "+
		"SELECT "+when+" AS ms, reason, toUInt64(1) AS n FROM uses WHERE "+scoped+" AND time >= fromUnixTimestamp64Milli({from1:Int64}) AND time < fromUnixTimestamp64Milli({to1:Int64}) UNION ALL "+
		"SELECT "+when+" AS ms, reason, toUInt64(n) AS n FROM "+suppressed+" WHERE "+scoped+" AND time >= fromUnixTimestamp64Milli({from2:Int64})"+
		") GROUP BY at, reason ORDER BY at DESC, reason LIMIT 2",
		scopeArgs+" from0=1767265200000 from1=1767263400000 to1=1767265200000 from2=1767263400000")
}

// questions are all that the endpoint can ask, as sets of rows that name where they
// belong.
func questions(t *testing.T, s *Store, scope Scope, given map[string]string) map[string][]string {
	t.Helper()
	ctx := t.Context()
	out := map[string][]string{}
	only := func(kind Kind) map[string]string {
		g := map[string]string{}
		for name, v := range given {
			if slices.Contains(fields[kind], name) {
				g[name] = v
			}
		}
		return g
	}
	ev, _, err := s.Events(ctx, scope, filter(t, KindEvents, only(KindEvents)), Page{Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range ev {
		out["events"] = append(out["events"], fmt.Sprintf("%s/%s seq %d", r.Aggregate.Keyspace, r.Aggregate.Tenant, r.Seq))
	}
	us, _, err := s.Uses(ctx, scope, filter(t, KindUses, only(KindUses)), Page{Limit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range us {
		out["uses"] = append(out["uses"], fmt.Sprintf("%s/%s use %s", u.Keyspace, u.Tenant, u.ID))
	}
	for _, kind := range []Kind{KindEvents, KindUses} {
		e, err := s.NewExport(ctx, scope, filter(t, kind, only(kind)), CSV, events.LogID{1})
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if _, err := e.WriteTo(ctx, &b); err != nil {
			t.Fatal(err)
		}
		ks, tenant, name := 5, 6, 0
		if kind == KindUses {
			ks, tenant = 6, 7
		}
		for _, cells := range readCSV(t, b.String())[1:] {
			label := " seq "
			if kind == KindUses {
				label = " use "
			}
			if kind == KindEvents && cells[tenant] == "" {
				cells[tenant] = "-"
			}
			out["export "+string(kind)] = append(out["export "+string(kind)], cells[ks]+"/"+cells[tenant]+label+cells[name])
		}
	}
	for _, rows := range out {
		slices.Sort(rows)
	}
	return out
}

// TestIsolation asks every question as every reader: each sees all that its
// restrictions admit and nothing else.
func TestIsolation(t *testing.T) {
	f := newFixture(t)
	all := f.trail()
	for name, who := range principals() {
		t.Run(name, func(t *testing.T) {
			scope := ScopeOf(who)
			var wantEvents, wantUses []string
			counts := map[string]uint64{}
			for _, r := range all {
				if who.Reaches(r.Aggregate.Keyspace, r.Aggregate.Tenant) {
					wantEvents = append(wantEvents, fmt.Sprintf("%s/%s seq %d", r.Aggregate.Keyspace, r.Aggregate.Tenant, r.Seq))
				}
			}
			for _, u := range f.uses {
				if who.Reaches(u.Keyspace, u.Tenant) {
					wantUses = append(wantUses, fmt.Sprintf("%s/%s use %s", u.Keyspace, u.Tenant, u.ID))
					counts[u.Reason.String()]++
				}
			}
			if n := len(wantEvents) + len(wantUses); (n == 0) != (name == "operators" || name == "nobody's") {
				t.Fatalf("it should see %d rows", n)
			}
			slices.Sort(wantEvents)
			slices.Sort(wantUses)
			got := questions(t, f.store, scope, nil)
			for q, want := range map[string][]string{"events": wantEvents, "export events": wantEvents, "uses": wantUses, "export uses": wantUses} {
				if !slices.Equal(got[q], want) {
					t.Errorf("%s: %d rows, want %d\n got %v\nwant %v", q, len(got[q]), len(want), got[q], want)
				}
			}
			for _, per := range []string{"hour", "day"} {
				cells, _, err := f.store.Usage(t.Context(), scope, filter(t, KindUsage, map[string]string{"per": per}), Page{Limit: 10_000})
				if err != nil {
					t.Fatal(err)
				}
				sums := map[string]uint64{}
				for _, c := range cells {
					sums[c.Reason.String()] += c.Count
				}
				if fmt.Sprint(sums) != fmt.Sprint(counts) {
					t.Errorf("usage per %s: %v, want %v", per, sums, counts)
				}
			}
			for _, k := range f.keys {
				for _, per := range []string{"hour", "day"} {
					cells, _, err := f.store.Usage(t.Context(), scope, filter(t, KindUsage, map[string]string{"per": per, "key": k.Key.String()}), Page{Limit: 10_000})
					if err != nil {
						t.Fatal(err)
					}
					var sum, want uint64
					for _, c := range cells {
						sum += c.Count
					}
					for _, u := range f.uses {
						if u.Key == k.Key && who.Reaches(k.Keyspace, k.Tenant) {
							want++
						}
					}
					if sum != want {
						t.Errorf("usage of %s per %s: %d, want %d", k.Key, per, sum, want)
					}
				}
				used, err := f.store.lastUsed(t.Context(), scope, []string{k.Key.String()})
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := used[k.Key]; ok && !who.Reaches(k.Keyspace, k.Tenant) {
					t.Errorf("last use of %s is visible", k.Key)
				}
			}
		})
	}
	for q, rows := range questions(t, f.store, Scope{}, nil) {
		if len(rows) > 0 {
			t.Errorf("the zero scope sees %d rows of %s", len(rows), q)
		}
	}
}

// naive is what a filter means, one row at a time.
func naive(f *Filter, u *UseRow) bool {
	return (f.Keyspace == "" || u.Keyspace == f.Keyspace) && (f.Tenant == "" || u.Tenant == f.Tenant) &&
		(f.Key.IsZero() || u.Key == f.Key) && (f.Reason == 0 || u.Reason == f.Reason) && (f.Scope == "" || u.Scope == f.Scope) &&
		(f.Node == "" || u.ID.Node == f.Node) && (f.Endpoint == "" || u.Endpoint == f.Endpoint) && (f.RequestID == "" || u.RequestID.String() == f.RequestID) && (f.From == 0 || u.Time >= f.From) && (f.To == 0 || u.Time < f.To) &&
		(f.Outcome == "" || (f.Outcome == "allowed") == u.Reason.Allowed()) && (!f.IP.IsValid() || f.IP.Contains(u.IP)) && (!f.IPUnknown || !u.IP.IsValid())
}

func TestUseFilters(t *testing.T) {
	f := newFixture(t)
	all := ScopeOf(&events.Principal{})
	for _, given := range []map[string]string{
		{}, {"keyspace": "scribe"}, {"tenant": "globex"}, {"key": f.keys[0].Key.String()}, {"key": keyID(4000).String()},
		{"outcome": "allowed"}, {"outcome": "denied"}, {"reason": "scope_missing"}, {"reason": "ok", "outcome": "denied"},
		{"ip": "203.0.113.7"}, {"ip": "203.0.113.0/24"}, {"ip": "203.0.113.128/25"}, {"ip": "0.0.0.0/0"}, {"ip": "2001:db8::/32"}, {"ip": "2001:db8::1"}, {"ip": "::"}, {"ip": "::/0"}, {"ip": "unknown"},
		{"scope": "write"}, {"node": "n1"}, {"node": "n2"},
		{"endpoint": "GET /v1/keys/{id}"}, {"endpoint": "GET /v1/keys"}, {"request_id": events.RequestID{1, 3}.String()}, {"request_id": "req_1"},
		{"from": start.String()}, {"to": start.String()}, {"from": start.Add(-3 * time.Second).String(), "to": start.Add(60 * time.Second).String()},
		{"keyspace": "scribe", "tenant": "acme", "key": f.keys[1].Key.String(), "outcome": "denied", "ip": "198.51.100.0/24", "from": start.Add(time.Second).String()},
	} {
		fl := filter(t, KindUses, given)
		got, next, err := f.store.Uses(t.Context(), all, fl, Page{Limit: 10_000})
		if err != nil || next != nil {
			t.Fatal(err, next)
		}
		var want []UseRow
		for _, u := range f.uses {
			if naive(fl, &u) {
				want = append(want, u)
			}
		}
		slices.SortFunc(want, func(a, b UseRow) int {
			return -cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.ID.N, b.ID.N))
		})
		if !slices.Equal(got, want) {
			t.Errorf("%v: %d rows, want %d", given, len(got), len(want))
		}
	}
	// The filters of the trail, by count.
	records := f.trail()
	for _, c := range []struct {
		given map[string]string
		want  func(r *events.Recorded) bool
	}{
		{map[string]string{"type": "audit.queried"}, func(r *events.Recorded) bool { return r.Aggregate.Stream() == events.Reads }},
		{map[string]string{"type": "key.renamed"}, func(r *events.Recorded) bool { return r.Type() == events.TypeKeyRenamed }},
		{map[string]string{"actor": "test"}, func(*events.Recorded) bool { return true }},
		{map[string]string{"actor": "init"}, func(*events.Recorded) bool { return false }},
		{map[string]string{"key": f.keys[3].Key.String()}, func(r *events.Recorded) bool { return r.Key() == f.keys[3].Key }},
		{map[string]string{"tenant": "acme", "keyspace": "other"}, func(r *events.Recorded) bool {
			return r.Aggregate.Tenant == "acme" && r.Aggregate.Keyspace == "other"
		}},
		{map[string]string{"request_id": `it's \ "quoted"`}, func(*events.Recorded) bool { return false }},
		{map[string]string{"ip": "203.0.113.7"}, func(*events.Recorded) bool { return false }},
	} {
		got, _, err := f.store.Events(t.Context(), all, filter(t, KindEvents, c.given), Page{Limit: 10_000})
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		for i := range records {
			if c.want(&records[i]) {
				want++
			}
		}
		if len(got) != want {
			t.Errorf("%v: %d events, want %d", c.given, len(got), want)
		}
	}
}

// TestPages walks the ledger while more is written: nothing is missing, nothing
// comes twice, and nothing newer slips in.
func TestPages(t *testing.T) {
	f := newFixture(t)
	scope := ScopeOf(&events.Principal{})
	fl := filter(t, KindUses, map[string]string{"outcome": "denied"})
	var want, got []UseRow
	for _, u := range f.uses {
		if naive(fl, &u) {
			want = append(want, u)
		}
	}
	var after *Cursor
	for page := 0; page == 0 || after != nil; page++ {
		rows, next, err := f.store.Uses(t.Context(), scope, fl, Page{Limit: 7, After: after})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rows...)
		after = next
		if next != nil {
			if after, err = parseCursor(next.encode(scope, fl), scope, fl); err != nil {
				t.Fatal(err)
			}
		}
		if page%5 == 0 {
			f.publish(t, 12)
			waitCopied(t, f.store, f.log)
		}
	}
	slices.SortFunc(want, func(a, b UseRow) int {
		return -cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.ID.N, b.ID.N))
	})
	if !slices.Equal(got, want) {
		t.Errorf("walked %d rows, want %d", len(got), len(want))
	}
	// The trail and the counts, page by page, are what one page holds.
	ef := filter(t, KindEvents, nil)
	checkWalk(t, func(p Page) ([]events.EventID, *Cursor, error) {
		rows, next, err := f.store.Events(t.Context(), scope, ef, p)
		var out []events.EventID
		for _, r := range rows {
			out = append(out, r.ID)
		}
		return out, next, err
	})
	for _, given := range []map[string]string{{}, {"per": "day"}, {"key": f.keys[0].Key.String()}, {"key": f.keys[0].Key.String(), "per": "day"}} {
		uf := filter(t, KindUsage, given)
		checkWalk(t, func(p Page) ([]UsageCell, *Cursor, error) { return f.store.Usage(t.Context(), scope, uf, p) })
	}
}

func checkWalk[R comparable](t *testing.T, ask func(Page) ([]R, *Cursor, error)) {
	t.Helper()
	want, _, err := ask(Page{Limit: 10_000})
	if err != nil || len(want) == 0 {
		t.Fatal(err, len(want))
	}
	var got []R
	p := Page{Limit: 3}
	for {
		rows, next, err := ask(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rows...)
		if p.After = next; next == nil {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("walked %v, want %v", got, want)
	}
}

func TestLastUsed(t *testing.T) {
	f := newFixture(t)
	ids := []events.KeyID{keyID(1)}
	want := map[events.KeyID]events.Time{}
	for _, k := range f.keys {
		ids = append(ids, k.Key)
	}
	for _, u := range f.uses {
		if u.Reason.Allowed() && !u.Key.IsZero() {
			want[u.Key] = max(want[u.Key], u.Time)
		}
	}
	got, err := f.store.LastUsed(context.Background(), ids)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("last used: %v, %v, want %v", got, err, want)
	}
}

func TestParseFilterFaults(t *testing.T) {
	_, faults := ParseFilter(KindUses, map[string]string{"keyspace": "A", "tenant": "a b", "key": "key_1", "outcome": "yes", "reason": "no", "ip": "203.0.113.7/24",
		"scope": " ", "node": "-", "from": "today", "to": "2026-13-01T00:00:00Z", "actor": "x", "nonsense\n": "1"})
	var names []string
	for _, f := range faults {
		names = append(names, f.Field)
	}
	slices.Sort(names)
	want := []string{"actor", "from", "ip", "key", "keyspace", "node", "outcome", "reason", "scope", "tenant", "to", "…"}
	if !slices.Equal(names, want) {
		t.Errorf("faults %q, want %q", names, want)
	}
	if _, faults := ParseFilter(KindEvents, map[string]string{"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}); len(faults) != 1 || faults[0].Field != "to" {
		t.Errorf("from after to: %v", faults)
	}
}

func TestForeignCursor(t *testing.T) {
	all, some := ScopeOf(&events.Principal{}), ScopeOf(&events.Principal{Tenants: []events.TenantID{"acme"}})
	f := filter(t, KindUses, map[string]string{"tenant": "acme"})
	token := (&Cursor{walk: 3, bound: 9, boundReads: 4, time: 8, seq: 7, n: 6}).encode(all, f)
	if c, err := parseCursor(token, all, f); err != nil || *c != (Cursor{3, 9, 4, 8, 7, 6}) {
		t.Fatal(c, err)
	}
	for name, try := range map[string]func() error{
		"other filter": func() error { _, err := parseCursor(token, all, filter(t, KindUses, nil)); return err },
		"other kind": func() error {
			_, err := parseCursor(token, all, filter(t, KindEvents, map[string]string{"tenant": "acme"}))
			return err
		},
		"other reader": func() error { _, err := parseCursor(token, some, f); return err },
		"cut":          func() error { _, err := parseCursor(token[:len(token)-1], all, f); return err },
		"changed":      func() error { _, err := parseCursor("B"+token[1:], all, f); return err },
		"empty":        func() error { _, err := parseCursor("", all, f); return err },
	} {
		if try() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestSuppressedUsesAreCounted: what a node only counted is in the counts, by
// hour, day, keyspace and reason, for readers who may see uses of unknown keys.
func TestSuppressedUsesAreCounted(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: 5 * time.Millisecond})
	hour := start.Add(-59 * time.Minute)
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{
		use(start, "scribe", "acme", keyID(1), events.ReasonOK, ""), use(start, "scribe", "", events.KeyID{}, events.ReasonKeyUnknown, "")}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchSuppressed, First: 3, Tallies: []events.Tally{
		{Time: start, Until: start, Keyspace: "scribe", Reason: events.ReasonKeyUnknown, Count: 1000},
		{Time: start.Add(time.Hour), Until: start.Add(time.Hour), Keyspace: "scribe", Reason: events.ReasonKeyUnknown, Count: 30},
		{Time: start, Until: start, Reason: events.ReasonKeyMissing, Count: 7}}})
	waitCopied(t, s, log)
	for _, c := range []struct {
		who   *events.Principal
		given map[string]string
		want  string
	}{
		{&events.Principal{}, map[string]string{}, "[+1h key_unknown 30] [+0h key_missing 7] [+0h key_unknown 1001] [+0h ok 1]"},
		{&events.Principal{}, map[string]string{"keyspace": "scribe"}, "[+1h key_unknown 30] [+0h key_unknown 1001] [+0h ok 1]"},
		{&events.Principal{}, map[string]string{"per": "day", "keyspace": "scribe"}, "[+1h key_unknown 30] [-23h key_unknown 1001] [-23h ok 1]"},
		{&events.Principal{}, map[string]string{"tenant": "acme"}, "[+0h ok 1]"},
		{&events.Principal{Tenants: []events.TenantID{"acme"}}, map[string]string{}, "[+0h ok 1]"},
		{&events.Principal{Keyspaces: []events.KeyspaceID{"other"}}, map[string]string{}, ""},
	} {
		cells, _, err := s.Usage(t.Context(), ScopeOf(c.who), filter(t, KindUsage, c.given), Page{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, cell := range cells {
			got = append(got, fmt.Sprintf("[%+dh %s %d]", (cell.At-hour)/3600_000, cell.Reason, cell.Count))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v of %v:\n%s\nwant:\n%s", c.given, c.who, s, c.want)
		}
	}
	mustReconcile(t, s, log)
}
