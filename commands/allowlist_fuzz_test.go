package commands_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// FuzzAllowlist puts any text in an allowlist: it is refused by its place, or it
// is one network that events can hold, and it is read again as the same.
func FuzzAllowlist(f *testing.F) {
	for _, s := range []string{"203.0.113.7", "203.0.113.0/24", "203.0.113.1/24", "2001:db8::/32", "::ffff:192.0.2.0/120", "::ffff:192.0.2.0/95", "fe80::1%eth0",
		"0.0.0.0/0", "::/0", "1.2.3.4/33", "01.2.3.4", "1.2.3", " 1.2.3.4", "1.2.3.4/+1", "1.2.3.4/0x1", "", "/8", "\x00", "é"} {
		f.Add(s)
	}
	key := events.Key{Status: events.StatusActive}
	read := func(s string) (netip.Prefix, error) {
		list := []string{s}
		datas, err := (&commands.SetAllowlist{Allowlist: &list}).Decide(&key, nil, 1)
		if err != nil {
			return netip.Prefix{}, err
		}
		return datas[0].(*events.KeyAllowlistUpdated).After[0], nil
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := read(s)
		if err != nil {
			faults, ok := err.(input.FieldErrors)
			if !ok || len(faults) != 1 || faults[0].Field != "allowlist[0]" || faults[0].Message == "" {
				t.Fatalf("%q: %#v", s, err)
			}
			return
		}
		if err := events.ValidAllowlist([]netip.Prefix{p}); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if again, err := read(p.String()); err != nil || again != p {
			t.Fatalf("%q is %s, which is read as %s, %v", s, p, again, err)
		}
		address, _, _ := strings.Cut(s, "/")
		if a, err := netip.ParseAddr(address); err != nil || !p.Contains(a.Unmap()) {
			t.Fatalf("%q is %s, which lacks its own address", s, p)
		}
	})
}
