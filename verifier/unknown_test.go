package verifier

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// A flood of unknown keys is recorded up to its budget, block by block, and
// counted beyond it by reason; uses of known keys are all recorded, and every
// number is accounted for.
func TestUnknownKeysAreRecordedWithinABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, func(c *LedgerConfig) { c.MaxUses, c.BatchUses = 1<<20, 1536 })
		stop := run(t, l)
		synctest.Wait()
		const seconds, flood = 3, 10_000
		from := map[events.Reason]int{}
		known, recorded := 0, map[netip.Prefix]int{}
		for s := range seconds {
			for i := range flood {
				u := unknownUse(0)
				u.Time += events.Time(1000 * s)
				switch {
				case i%10 == 0:
					u = testUse(i)
					u.Time += events.Time(1000 * s)
					known++
				case i%10 == 1: // a neighbour with a few wrong keys of its own
					u.IP = netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
				case i%10 == 2:
					u.IP = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 1, byte(i), byte(i >> 8)})
				case i%10 == 3:
					u.Reason, u.Keyspace, u.IP = events.ReasonKeyMissing, "", netip.Addr{}
				}
				_, err := l.Append(&u)
				switch {
				case err == nil && u.Key.IsZero():
					recorded[events.BlockOf(u.IP)]++
				case errors.Is(err, ErrSuppressed) && u.Key.IsZero():
					from[u.Reason]++
				case err != nil:
					t.Fatalf("a use of a known key: %v", err)
				}
			}
			time.Sleep(time.Second)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for _, block := range []string{"192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/48"} {
			if n := recorded[netip.MustParsePrefix(block)]; n != seconds*25 {
				t.Errorf("%d uses from %s recorded one by one, want %d", n, block, seconds*25)
			}
		}
		e := readLedger(t, log, testNode)[0]
		if !e.closed || e.end != seconds*flood || len(e.gaps) != 0 || len(e.uses) != known+seconds*100 {
			t.Fatalf("closed %v, %d numbers, gaps %v, %d uses of which %d known", e.closed, e.end, e.gaps, len(e.uses), known)
		}
		unknown, missing := e.counts[reasonOf{"acme", events.ReasonKeyUnknown}], e.counts[reasonOf{"", events.ReasonKeyMissing}]
		if len(e.counts) != 2 || int(unknown) != from[events.ReasonKeyUnknown] || int(missing) != from[events.ReasonKeyMissing] || missing != seconds*(flood/10-25) {
			t.Fatalf("counts %v, want %v", e.counts, from)
		}
		last, _ := log.LastUse(t.Context())
		if last > 2+3*seconds*(flood/10/1536+2) {
			t.Errorf("%d messages", last)
		}
	})
}

// While the stream is away a flood of unknown keys takes no place of a known
// key's use: as many are held as without it, and the flood is counted exactly.
func TestUnknownKeysPushNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, func(c *LedgerConfig) { c.MaxUses, c.BatchUses = 1024, 64 })
		stop := run(t, l)
		synctest.Wait()
		log.SetDown(true)
		const minutes, each = 16, 64 // 1024 uses of known keys: as many as fit
		flood := 0
		for m := range minutes {
			for i := range each {
				u := testUse(m*each + i)
				u.Time += events.Time(60_000 * m)
				if _, err := l.Append(&u); err != nil {
					t.Fatalf("use %d of a known key: %v", m*each+i, err)
				}
				for j := range 100 {
					u := unknownUse(j)
					u.Time += events.Time(60_000*m + 900*i)
					u.IP = netip.AddrFrom4([4]byte{10, byte(j), 0, 1})
					l.Append(&u)
					flood++
				}
			}
			time.Sleep(time.Minute)
		}
		if n := l.Buffered(); n != uint64(minutes*each+flood) {
			t.Fatalf("%d decisions wait, want %d", n, minutes*each+flood)
		}
		log.SetDown(false)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		e := readLedger(t, log, testNode)[0]
		known := 0
		for _, u := range e.uses {
			if !u.Key.IsZero() {
				known++
			}
		}
		counted := e.counts[reasonOf{"acme", events.ReasonKeyUnknown}]
		if known != minutes*each || len(e.gaps) != 0 || !e.closed || int(counted)+len(e.uses)-known != flood || e.end != uint64(known+flood) {
			t.Fatalf("%d of known keys, gaps %v, %d counted, %d numbers", known, e.gaps, counted, e.end)
		}
	})
}

// A client may name any keyspace, and come from any address: what is told apart is
// bounded, and the counts stay exact.
func TestTalliesAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		change func(u *events.Use, i int)
		want   int // tallies
	}{
		"keyspaces": {func(u *events.Use, i int) { u.Keyspace = events.KeyspaceID(fmt.Sprint("k", i)) }, maxBlockTallies + maxRestKeyspaces + 1},
		"blocks":    {func(u *events.Use, i int) { u.IP = netip.AddrFrom4([4]byte{10, byte(i), byte(i >> 8), 1}) }, maxTallies + 1},
		"both": {func(u *events.Use, i int) {
			u.IP, u.Keyspace = netip.AddrFrom4([4]byte{10, byte(i), byte(i >> 8), 1}), events.KeyspaceID(fmt.Sprint("k", i))
		}, maxTallies + maxRestKeyspaces + 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			log := logtest.New(t)
			l := testLedger(log, func(c *LedgerConfig) { c.UnknownPerSecond = 1 })
			stop := run(t, l)
			synctest.Wait()
			for i := range 10_001 {
				u := unknownUse(0)
				c.change(&u, i)
				l.Append(&u)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			e := readLedger(t, log, testNode)[0]
			total := uint64(0)
			for _, c := range e.tallies {
				total += c.Count
			}
			if total != 10_000 || len(e.tallies) != c.want || e.end != 10_001 {
				t.Fatalf("%s: %d counted in %d tallies, want %d; %d numbers", name, total, len(e.tallies), c.want, e.end)
			}
		})
	}
}

// An answer about a key that is not known stays the refusal that it is when its
// use is only counted, also where uses must be durable; it names no use.
func TestSuppressedUsesAreRefusalsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		durable := scribeDefinition()
		durable.Ledger = keyspace.LedgerSync
		w.define(scribe, durable)
		ask := func(word string) string {
			rec := httptest.NewRecorder()
			w.mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify", strings.NewReader(`{"keyspace":"scribe-sight","key":"`+secretOf(word)+`"}`)))
			if rec.Code != http.StatusOK {
				t.Fatalf("%d %s", rec.Code, rec.Body)
			}
			return rec.Body.String()
		}
		named := 0
		for range 1000 {
			body := ask("nobody")
			if !strings.Contains(body, `"reason":"key_unknown","status":401`) {
				t.Fatal(body)
			}
			if strings.Contains(body, "use_id") {
				named++
			}
		}
		if named != 25 {
			t.Errorf("%d of 1000 have a use of their own, want 25", named)
		}
		if body := ask("plain"); !strings.Contains(body, `"reason":"ok"`) || !strings.Contains(body, "use_id") {
			t.Errorf("a known key beside the flood: %s", body)
		}
		if !strings.Contains(string(scrape(t, w.node)), `keytrail_verifier_ledger_suppressed_total{reason="key_unknown"} 975`) {
			t.Error("the metric does not say 975")
		}
		if e := w.end()[0]; e.end != 1001 || e.counts[reasonOf{scribe, events.ReasonKeyUnknown}] != 975 {
			t.Errorf("%d numbers, counts %v", e.end, e.counts)
		}
	})
}
