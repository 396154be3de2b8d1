package audit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestAddressFilterIsNetip: for any network, the filter finds the uses whose
// address it contains, as netip says, and no others; those without an address are
// found as unknown only, and :: is an address like any other.
func TestAddressFilterIsNetip(t *testing.T) {
	log := logtest.New(t)
	store := openStore(t, enginetest.Database(t))
	startWriter(t, WriterConfig{Store: store, Log: log, Reads: log.Reads(), Uses: log, Linger: 5 * time.Millisecond})
	logtest.Append(t, log, events.KeyspaceAggregate("scribe"), &events.KeyspaceDefined{Definition: events.BuiltinDefinition()})
	r := rand.New(rand.NewPCG(1, 2))
	ips := []netip.Addr{{}, addr("::"), addr("::1"), addr("::ffff"), addr("::fffe:ffff:ffff"), addr("::1:0:0:0"), addr("0.0.0.0"), addr("255.255.255.255"),
		addr("203.0.113.7"), addr("2001:db8::1"), addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")}
	for range 100 {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.IntN(3)) * 0x7f // few values: networks are hit
		}
		ips = append(ips, netip.AddrFrom16(b), netip.AddrFrom4([4]byte(b[12:])))
	}
	batch := events.UseBatch{Node: "n1", Epoch: 7, Kind: events.BatchUses, First: 1}
	for i := range ips {
		if ips[i].Is4In6() {
			ips[i] = ips[i].Unmap()
		}
		u := use(start, "scribe", "acme", keyID(1), events.ReasonOK, "")
		u.IP = ips[i]
		batch.Uses = append(batch.Uses, u)
	}
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 7, Kind: events.BatchOpen})
	publish(t, log, batch)
	waitCopied(t, store, log)

	ask := func(ip string) (got []uint64) {
		t.Helper()
		rows, _, err := store.Uses(t.Context(), ScopeOf(&events.Principal{}), filter(t, KindUses, map[string]string{"ip": ip}), Page{Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range rows {
			if u.IP != ips[u.ID.N-1] {
				t.Errorf("use %d comes back from %s, was from %s", u.ID.N, u.IP, ips[u.ID.N-1])
			}
			got = append(got, u.ID.N)
		}
		slices.Sort(got)
		return got
	}
	check := func(ip string, in func(netip.Addr) bool) {
		t.Helper()
		var want []uint64
		for i, a := range ips {
			if in(a) {
				want = append(want, uint64(i+1))
			}
		}
		if got := ask(ip); !slices.Equal(got, want) {
			t.Errorf("ip=%s finds %v, want %v", ip, got, want)
		}
	}
	check("unknown", func(a netip.Addr) bool { return !a.IsValid() })
	for _, a := range ips[1:] {
		check(a.String(), func(b netip.Addr) bool { return a == b })
		for range 2 {
			p, err := a.Prefix(r.IntN(a.BitLen() + 1))
			if err != nil {
				t.Fatal(err)
			}
			if p.Addr().Is4In6() {
				continue // not a network that can be asked for
			}
			check(p.String(), p.Contains)
		}
	}
	for _, p := range []string{"::/0", "0.0.0.0/0", "::/1", "::/64", "::/80", "::/95", "8000::/1"} {
		check(p, netip.MustParsePrefix(p).Contains)
	}
	if found, err := Reconcile(t.Context(), store, log, log.Reads(), log); err != nil || len(found.Mismatches) > 0 {
		t.Errorf("%v, %v", fmt.Sprint(found), err)
	}
}
