package commands

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// SetAllowlist replaces the networks that a key may be used from.
type SetAllowlist struct {
	Allowlist *[]string `json:"allowlist,omitzero"` // addresses and networks; [] = any address
	Reason    string    `json:"reason,omitzero"`
}

// Decide returns the update, nothing when the list stands as asked, or why not.
func (c *SetAllowlist) Decide(k *events.Key, _ *Rules, now events.Time) ([]events.Data, error) {
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	var after []netip.Prefix
	if c.Allowlist == nil {
		f.Add("allowlist", "required", "want a list of addresses and networks; [] lets the key be used from any address")
	} else {
		after = parseAllowlist(&f, *c.Allowlist)
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	data := &events.KeyAllowlistUpdated{Before: k.Allowlist, After: after}
	if err := admit(k, data, now); err != nil || slices.Equal(k.Allowlist, after) {
		return nil, err
	}
	return []events.Data{data}, nil
}

// parseAllowlist reads addresses and networks as people write them and returns
// them as events hold them: masked, unmapped, sorted, each once.
func parseAllowlist(f *input.FieldErrors, list []string) []netip.Prefix {
	if len(list) > events.MaxAllowlist {
		f.Add("allowlist", "invalid", fmt.Sprintf("want at most %d entries", events.MaxAllowlist))
		return nil
	}
	out := make([]netip.Prefix, 0, len(list))
	for i, s := range list {
		p, code, msg := parseNetwork(s)
		if code != "" {
			f.Add(fmt.Sprintf("allowlist[%d]", i), code, msg)
			continue
		}
		out = append(out, p)
	}
	return sorted(out, events.ComparePrefixes)
}

const wantNetwork = "want an IPv4 or IPv6 address or network, as 203.0.113.7 or 203.0.113.0/24"

func parseNetwork(s string) (p netip.Prefix, code, msg string) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return p, "invalid", "want an address without a zone"
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), "", ""
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, "invalid", wantNetwork
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, "invalid", "an IPv4 network written in IPv6 needs at least /96"
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return p, "host_bits", fmt.Sprintf("the address has bits outside its network: want %s or %s/%d", m, p.Addr(), p.Addr().BitLen())
	}
	return p, "", ""
}
