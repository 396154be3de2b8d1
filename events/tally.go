package events

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
)

// Tally counts decisions that were alike and have no record of their own: denials
// of keys that are not known. A use with a record of its own is in no tally, so
// the two add up.
type Tally struct {
	Time     Time         // of the first of them
	Until    Time         // of the last: in the same second, except after the use stream was away for minutes
	Keyspace KeyspaceID   // the keyspace that the requests named, "" for none
	Reason   Reason       // why they were denied
	Block    netip.Prefix // where they came from, as BlockOf has it; AnyBlock() = several blocks or keyspaces, not told apart
	Count    uint64       // at least 1, at most MaxTally
}

// AnyBlock returns the block of every address. A tally of it counts what a node did not tell apart:
// it names a bounded number of blocks and keyspaces a second.
func AnyBlock() netip.Prefix { return netip.PrefixFrom(netip.IPv6Unspecified(), 0) }

// The length of a block's prefix, by family: about what one client commonly has.
const (
	BlockBits4 = 24
	BlockBits6 = 48
)

// BlockOf returns the block of addresses that ip lies in: a /24 of IPv4, a /48 of
// IPv6; the zero Prefix for an address that is not known.
func BlockOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap().WithZone("")
	bits := BlockBits6
	if ip.Is4() {
		bits = BlockBits4
	}
	p, _ := ip.Prefix(bits) // fails for the zero Addr only
	return p
}

func (t *Tally) validate() error {
	if t.Reason.Allowed() {
		return fmt.Errorf("reason %s: want a denial", t.Reason)
	}
	if t.Count == 0 || t.Count > MaxTally {
		return fmt.Errorf("count %d: want 1 to %d", t.Count, uint64(MaxTally))
	}
	if t.Until < t.Time || t.Until > maxTime {
		return fmt.Errorf("until: want an instant at or after time")
	}
	if t.Block != (netip.Prefix{}) && (!t.Block.IsValid() || t.Block != t.Block.Masked() || t.Block.Addr().Is4In6()) {
		return fmt.Errorf("block %s: want a network without host bits", t.Block)
	}
	return nil
}

// addTally appends a row that stands for many uses: the other columns of a use are
// absent.
func (e *useEncoder) addTally(t *Tally) error {
	if err := checkRow(&Use{Time: t.Time, Reason: t.Reason, Cost: 1}); err != nil {
		return err
	}
	holder, err := ref(e.holders, holder{keyspace: t.Keyspace}, e.addHolder)
	if err != nil {
		return err
	}
	addr, err := e.addr(t.Block.Addr())
	if err != nil {
		return err
	}
	e.put(fTime, protowire.EncodeZigZag(int64(t.Time)-e.time))
	e.put(fHolder, holder)
	e.put(fReason, uint64(t.Reason))
	e.put(fAddr, addr)
	e.put(fTimes, t.Count)
	e.put(fBlockBits, uint64(max(t.Block.Bits(), 0)))
	e.put(fSpan, uint64(t.Until-t.Time))
	e.time = int64(t.Time)
	return nil
}

// tallies turns the rows of suppressed uses into tallies.
func (d *useDecoder) tallies() error {
	b, times, bits, spans := &d.batch, &d.columns[fTimes], &d.columns[fBlockBits], &d.columns[fSpan]
	if b.Kind != BatchSuppressed {
		if d.seen&(1<<fTimes|1<<fBlockBits|1<<fSpan) != 0 {
			return fmt.Errorf("times, block_bits, span: want them on suppressed uses only")
		}
		return nil
	}
	n := len(b.Uses)
	if n == 0 || !times.has(n) || d.seen&(1<<fBlockBits) != 0 && !bits.has(n) || d.seen&(1<<fSpan) != 0 && !spans.has(n) {
		return fmt.Errorf("the columns time, times, block_bits and span differ in length")
	}
	b.Tallies = make([]Tally, n)
	for i, u := range b.Uses {
		block, err := blockFrom(u.IP, bits.next())
		if err != nil {
			return fmt.Errorf("tally %d: %w", i, err)
		}
		span := spans.next()
		if span > uint64(maxTime) {
			return fmt.Errorf("tally %d: span out of range", i)
		}
		b.Tallies[i] = Tally{Time: u.Time, Until: u.Time + Time(span), Keyspace: u.Keyspace, Reason: u.Reason, Block: block, Count: times.next()}
		if u != (Use{Time: u.Time, Keyspace: u.Keyspace, Reason: u.Reason, IP: u.IP, Cost: 1}) {
			return fmt.Errorf("tally %d: want a time, a keyspace, a reason, a block and a count only", i)
		}
	}
	b.Uses = nil
	return nil
}

// blockFrom returns the block that an address and the length of a prefix mean.
func blockFrom(a netip.Addr, bits uint64) (netip.Prefix, error) {
	if !a.IsValid() && bits == 0 {
		return netip.Prefix{}, nil
	}
	if bits > uint64(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("block_bits %d: want at most %d", bits, a.BitLen())
	}
	return netip.PrefixFrom(a, int(bits)), nil
}
