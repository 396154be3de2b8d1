package audit

import (
	"context"
	"encoding/binary"
	mrand "math/rand/v2"
	"net/netip"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// crashLogID is the identity of the pure log.
func crashLogID(seed uint64) events.LogID {
	return events.LogID(ulid.ULID{0, 1, 2, 3, 4, 5, 6, 7, byte(seed)})
}

// pureUses is the use stream as a function of the seed. Three nodes; each epoch is
// 40 messages: open, uses, a gap in the middle, close. One message an hour, so
// that the partitions change every 700 messages or so.
type pureUses struct {
	seed uint64
	pace bool // a few messages at a time, slowly, so that there is something to kill
}

// epochFirst[j] is the first number of the j-th message of an epoch.
var epochFirst = func() (out [41]uint64) {
	out[1] = 1
	for j := 1; j < 40; j++ {
		out[j+1] = out[j] + epochCount(j)
	}
	return out
}()

func epochCount(j int) uint64 {
	switch j {
	case 0, 39:
		return 0
	case 20:
		return 5
	}
	return uint64(20 + 7*j%61)
}

func (p pureUses) batch(seq events.Seq) (events.UseBatch, events.Time) {
	i := int(seq - 1)
	stored := start.Add(time.Duration(i) * time.Hour)
	j := i / 3 % 40
	b := events.UseBatch{Log: crashLogID(p.seed), Node: events.NodeID("node-" + strconv.Itoa(i%3)), Epoch: int64(1 + i/120), First: epochFirst[j]}
	switch j {
	case 0:
		b.Kind, b.First = events.BatchOpen, 0
	case 20:
		b.Kind, b.Count, b.Note = events.BatchGap, epochCount(j), "buffer full"
	case 30:
		b.Kind = events.BatchSuppressed
		for left := epochCount(j); left > 0; {
			n := min(left, uint64(7))
			b.Tallies = append(b.Tallies, events.Tally{Time: stored - events.Time(left), Until: stored, Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2}), 24), Keyspace: "ks-1", Reason: events.ReasonKeyUnknown, Count: n})
			left -= n
		}
	case 39:
		b.Kind = events.BatchClose
	default:
		b.Kind = events.BatchUses
		r := mrand.New(mrand.NewPCG(p.seed, uint64(seq)))
		for range epochCount(j) {
			b.Uses = append(b.Uses, pureUse(r, stored))
		}
	}
	return b, stored
}

func pureUse(r *mrand.Rand, stored events.Time) events.Use {
	u := events.Use{Time: stored - events.Time(r.IntN(2*3600_000)), Reason: events.Reason(1 + r.IntN(12)), Cost: uint32(1 + r.IntN(5)), Seq: events.Seq(1 + r.IntN(1000))}
	switch r.IntN(4) {
	case 0:
		u.IP = netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(256))})
	case 1:
		u.IP = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(1 + r.IntN(255))})
	}
	if r.IntN(3) > 0 {
		u.Scope = []string{"read", "write", "admin:*"}[r.IntN(3)]
		u.Resource = events.Resource{Kind: "project", ID: "proj_" + strconv.Itoa(r.IntN(50))}
	}
	if r.IntN(10) > 0 {
		k := r.IntN(400)
		u.Key, u.Keyspace, u.Tenant = keyID(k), events.KeyspaceID("ks-"+strconv.Itoa(k%3)), events.TenantID("tenant-"+strconv.Itoa(k%17))
	} else if r.IntN(2) == 0 {
		u.Keyspace = "ks-1"
	}
	return u
}

func (p pureUses) LastUse(context.Context) (events.Seq, error) { return crashMessages, nil }

func (p pureUses) ReadUses(ctx context.Context, after events.Seq, max int) (out []events.UseMessage, err error) {
	if p.pace {
		max = min(max, 6)
	}
	for seq := after + 1; seq <= crashMessages && len(out) < max; seq++ {
		b, stored := p.batch(seq)
		data, err := events.EncodeUses(&b)
		if err != nil {
			return nil, err
		}
		out = append(out, events.UseMessage{Seq: seq, Stored: stored, Node: b.Node, Data: data})
	}
	if len(out) == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if p.pace {
		return out, pause(ctx, time.Millisecond)
	}
	return out, nil
}

// pureLog is one of the two logs of events as a function of the seed.
type pureLog struct {
	seed    uint64
	records []events.Recorded
}

func newPureLog(seed uint64, stream events.Stream) *pureLog {
	l := &pureLog{seed: seed}
	chains := map[events.Aggregate]*events.Chain{}
	for i := range crashEvents {
		k := keyID(i % 97)
		a := events.KeyAggregate("ks-0", events.TenantID("tenant-"+strconv.Itoa(i%97%5)), k)
		if stream == events.Reads {
			a = events.ReaderAggregate(events.Actor{ID: k.String()})
		}
		c := chains[a]
		if c == nil {
			c = new(events.Chain)
			chains[a] = c
		}
		var data events.Data = &events.KeyRenamed{After: events.Label{Name: "name " + strconv.FormatUint(seed, 16), Metadata: map[string]string{"i": strconv.Itoa(i)}}}
		switch {
		case stream == events.Reads:
			data = &events.AuditQueried{Kind: "uses", Filter: map[string]string{"seed": strconv.FormatUint(seed, 16), "i": strconv.Itoa(i)}}
		case c.Rev == 0:
			data = logtest.Created(k.String())
		}
		var id ulid.ULID
		binary.BigEndian.PutUint64(id[8:], uint64(i+1))
		at := start.Add(time.Duration(i) * 2 * time.Hour)
		w := logtest.Stamp(c, events.Event{ID: events.EventID(id), Aggregate: a, Time: at - 3, Source: "/keytrail/test",
			Actor: events.Actor{Kind: events.ActorSystem, ID: "test"}, IP: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Data: data})
		c.Seq = events.Seq(i + 1)
		m, err := events.Encode(&w.Event)
		if err != nil {
			panic(err)
		}
		l.records = append(l.records, m.Record(w.Event, c.Seq, at))
	}
	return l
}

func (l *pureLog) ID() events.LogID        { return crashLogID(l.seed) }
func (l *pureLog) Readers() events.Release { return events.FirstRelease }
func (l *pureLog) Append(context.Context, ...events.Write) (events.Seq, error) {
	return 0, events.ErrUnavailable
}
func (l *pureLog) Load(context.Context, events.Aggregate) ([]events.Recorded, error) {
	return nil, events.ErrUnavailable
}
func (l *pureLog) Last(context.Context) (events.Seq, error) { return crashEvents, nil }

func (l *pureLog) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	for ctx.Err() == nil {
		batch := l.records[after:min(len(l.records), int(after)+4)]
		if len(batch) > 0 {
			if err := f.Apply(batch); err != nil {
				return err
			}
			after = batch[len(batch)-1].Seq
		} else {
			f.Fresh(start, crashEvents)
		}
		if err := pause(ctx, 8*time.Millisecond); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// newFastLog is the pure log without its pace.
func newFastLog(seed uint64, stream events.Stream) events.Log {
	return fastLog{newPureLog(seed, stream)}
}

type fastLog struct{ *pureLog }

func (l fastLog) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	if err := f.Apply(l.records[after:]); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}
