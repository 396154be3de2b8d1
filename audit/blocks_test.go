package audit

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// flood is what a naive twin knows of uses of unknown keys.
type flood struct {
	node events.NodeID
	uses []events.Use
	many []events.Tally
}

// publishFlood writes some seconds of a flood from many blocks to two nodes.
func publishFlood(t *testing.T, log *logtest.MemLog, r *rand.Rand) (all []*flood) {
	for _, node := range []events.NodeID{"n1", "n2"} {
		f, n := &flood{node: node}, uint64(1)
		all = append(all, f)
		publish(t, log, events.UseBatch{Node: node, Epoch: 1, Kind: events.BatchOpen})
		for second := range 4 {
			at := start.Add(time.Duration(second) * time.Second)
			where := func() (netip.Addr, events.KeyspaceID, events.Reason) {
				ip := netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(100)), byte(r.IntN(256))})
				switch r.IntN(6) {
				case 0:
					ip = netip.Addr{}
				case 1:
					ip = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(r.IntN(20)), byte(r.IntN(256)), 15: byte(r.IntN(256))})
				}
				return ip, []events.KeyspaceID{"", "scribe", "other"}[r.IntN(3)], []events.Reason{events.ReasonKeyUnknown, events.ReasonKeyMissing, events.ReasonKeyMalformed}[r.IntN(3)]
			}
			batch := events.UseBatch{Node: node, Epoch: 1, Kind: events.BatchUses, First: n}
			for range 60 {
				ip, space, reason := where()
				u := use(at+events.Time(r.IntN(500)), space, "", events.KeyID{}, reason, "")
				u.IP = ip
				batch.Uses = append(batch.Uses, u)
			}
			batch.Uses = append(batch.Uses, use(at, "scribe", "acme", keyID(1), events.ReasonOK, "198.51.1.1")) // of a known key
			f.uses, n = append(f.uses, batch.Uses...), n+batch.Len()
			publish(t, log, batch)
			batch = events.UseBatch{Node: node, Epoch: 1, Kind: events.BatchSuppressed, First: n}
			for i := range 80 {
				ip, space, reason := where()
				c := events.Tally{Time: at + events.Time(r.IntN(500)), Keyspace: space, Reason: reason, Block: events.BlockOf(ip), Count: uint64(1 + r.IntN(1000))}
				if i < 5 {
					c.Block = events.AnyBlock()
				}
				c.Until = c.Time + events.Time(r.IntN(500))
				batch.Tallies = append(batch.Tallies, c)
			}
			f.many, n = append(f.many, batch.Tallies...), n+batch.Len()
			publish(t, log, batch)
		}
		publish(t, log, events.UseBatch{Node: node, Epoch: 1, Kind: events.BatchClose, First: n})
	}
	return all
}

// naiveBlocks counts as Blocks does, in the order of its answer.
func naiveBlocks(all []*flood, f *Filter, sees func(events.KeyspaceID) bool) []Block {
	type id struct {
		block  netip.Prefix
		space  events.KeyspaceID
		reason events.Reason
	}
	sums := map[id]Block{}
	for _, fl := range all {
		add := func(at, until events.Time, k id, from, recorded bool, n uint64) {
			if f.Node != "" && f.Node != fl.node || f.Keyspace != "" && k.space != f.Keyspace || f.Reason != 0 && k.reason != f.Reason ||
				f.From != 0 && at < f.From || f.To != 0 && at >= f.To || !from || !sees(k.space) {
				return
			}
			b, ok := sums[k]
			if !ok {
				b = Block{Block: k.block, Keyspace: k.space, Reason: k.reason, First: at, Last: until}
			}
			b.Count, b.First, b.Last = b.Count+n, min(b.First, at), max(b.Last, until)
			if recorded {
				b.Recorded += n
			}
			sums[k] = b
		}
		for _, u := range fl.uses {
			if u.Key.IsZero() {
				add(u.Time, u.Time, id{events.BlockOf(u.IP), u.Keyspace, u.Reason}, (!f.IP.IsValid() || f.IP.Contains(u.IP)) && (!f.IPUnknown || !u.IP.IsValid()), true, 1)
			}
		}
		for _, c := range fl.many {
			any := c.Block == events.AnyBlock()
			from := (!f.IP.IsValid() || any || c.Block.IsValid() && f.IP.Overlaps(c.Block)) && (!f.IPUnknown || any || !c.Block.IsValid())
			add(c.Time, c.Until, id{c.Block, c.Keyspace, c.Reason}, from, false, c.Count)
		}
	}
	return slices.SortedFunc(maps.Values(sums), func(a, b Block) int {
		return cmp.Or(-cmp.Compare(a.Count, b.Count), strings.Compare(fmt.Sprint(a), fmt.Sprint(b)))
	})
}

// TestBlocks: where uses of unknown keys came from, against a naive twin: those that
// are recorded one by one and those that are counted, under every filter and scope,
// page by page.
func TestBlocks(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: 5 * time.Millisecond})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	all := publishFlood(t, log, r)
	waitCopied(t, s, log)
	readers := []struct {
		who  events.Principal
		sees func(events.KeyspaceID) bool
	}{
		{events.Principal{}, func(events.KeyspaceID) bool { return true }},
		{events.Principal{Keyspaces: []events.KeyspaceID{"scribe"}}, func(k events.KeyspaceID) bool { return k == "scribe" }},
		{events.Principal{Tenants: []events.TenantID{"acme"}}, func(events.KeyspaceID) bool { return false }},
	}
	for _, given := range []map[string]string{
		{}, {"keyspace": "scribe"}, {"reason": "key_missing"}, {"node": "n2"}, {"ip": "unknown"}, {"ip": "198.51.7.0/24"}, {"ip": "198.51.0.0/16"}, {"ip": "198.51.7.9"},
		{"ip": "2001:db8:7::/48"}, {"ip": "2001:db8::/32"}, {"ip": "2001:db8:7:1::/64"}, {"ip": "::/0"}, {"ip": "0.0.0.0/0"}, {"ip": "192.0.2.1"},
		{"from": start.Add(time.Second).String()}, {"to": start.Add(1100 * time.Millisecond).String()}, {"ip": "198.51.0.0/18", "keyspace": "other", "reason": "key_unknown", "node": "n1", "to": start.Add(2 * time.Second).String()},
	} {
		for i := range readers {
			f := filter(t, KindBlocks, given)
			want := naiveBlocks(all, f, readers[i].sees)
			var got []Block
			for p := (Page{Limit: 97}); ; {
				page, next, err := s.Blocks(t.Context(), ScopeOf(&readers[i].who), f, p)
				if err != nil {
					t.Fatalf("%v: %v", given, err)
				}
				if got = append(got, page...); next == nil {
					break
				}
				p.After = next
			}
			if !slices.IsSortedFunc(got, func(a, b Block) int { return -cmp.Compare(a.Count, b.Count) }) {
				t.Errorf("%v: the largest are not first", given)
			}
			slices.SortFunc(got, func(a, b Block) int {
				return cmp.Or(-cmp.Compare(a.Count, b.Count), strings.Compare(fmt.Sprint(a), fmt.Sprint(b)))
			})
			if !slices.Equal(got, want) {
				t.Errorf("%v, reader %d: %d blocks, want %d", given, i, len(got), len(want))
			}
		}
	}

	// An answer about uses says how many more there were.
	for _, c := range []struct {
		given map[string]string
		from  string // "" = no note
	}{
		{map[string]string{}, ""}, {map[string]string{"keyspace": "scribe", "outcome": "denied"}, ""},
		{map[string]string{"ip": "198.51.7.9"}, "up to "}, {map[string]string{"ip": "unknown"}, ""},
		{map[string]string{"tenant": "acme"}, "none"}, {map[string]string{"outcome": "allowed"}, "none"}, {map[string]string{"scope": "read"}, "none"},
	} {
		f := filter(t, KindUses, c.given)
		n := uint64(0)
		for _, b := range naiveBlocks(all, f, readers[0].sees) {
			n += b.Count - b.Recorded
		}
		note, err := s.countedNote(t.Context(), ScopeOf(&readers[0].who), f)
		if want := fmt.Sprintf("%s%d more uses of unknown keys match", c.from, n); err != nil || c.from == "none" && note != "" || c.from != "none" && !strings.HasPrefix(note, want) {
			t.Errorf("%v: %q, %v, want %q", c.given, note, err, want)
		}
	}
	mustReconcile(t, s, log)
}

// TestBlocksOfALongFlood: a million blocks in a database of which one use in 100 is of an
// unknown key. The question is answered in little memory, and reads no other uses.
func TestBlocksOfALongFlood(t *testing.T) {
	const blocks = 1_000_000
	dsn := enginetest.Database(t)
	s := openStore(t, dsn)
	for _, sql := range []string{
		// each block has one use, the last has two
		fmt.Sprintf(`INSERT INTO use_suppressed (seq, stored, node, epoch, time, until, block, block_bits, block_known, keyspace, reason, n)
			SELECT 1, '2026-01-01', 'n1', 1, '2026-01-01', '2026-01-01', toIPv6(concat('2001:', hex(intDiv(number, 65536)), ':', hex(modulo(number, 65536)), '::')), 48, 1, 'scribe', 'key_unknown', 1 + (number = %d)
			FROM numbers(%d)`, blocks-1, blocks),
		`INSERT INTO uses (seq, stored, node, epoch, n, time, keyspace, tenant, key_id, reason)
			SELECT 2, '2026-01-01', 'n1', 1, number, '2026-01-01', 'scribe', if(number % 100 = 0, '', concat('t', toString(number % 5000))),
				if(number % 100 = 0, '', concat('key_', toString(number % 50000))), if(number % 100 = 0, 'key_missing', 'ok')
			FROM numbers(200000)`,
		"OPTIMIZE TABLE uses FINAL",
	} {
		if err := s.conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	f := filter(t, KindBlocks, map[string]string{})
	sql, args := blocksPage(everything, f, Page{Limit: 2}, 2)
	var read []string
	err := s.each(t.Context(), "EXPLAIN indexes = 1 "+sql, args, func(rows driver.Rows) error {
		var line string
		err := rows.Scan(&line)
		if i := strings.Index(line, "Granules: "); i >= 0 && strings.Contains(line, "/") {
			read = append(read, line[i:])
		}
		return err
	})
	if err != nil || !slices.Contains(read, "Granules: 1/25") {
		t.Errorf("the parts of the tables that are read: %q, %v; want 1 of uses", read, err)
	}

	small := openStore(t, dsn+"?max_memory_usage=150000000")
	got, _, err := small.Blocks(t.Context(), everything, f, Page{Limit: 2, After: &Cursor{bound: 2}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Count != 2000 || got[0].Recorded != 2000 || got[1].Count != 2 || got[1].Block.String() != "2001:f:423f::/48" {
		t.Errorf("%+v", got)
	}
}
