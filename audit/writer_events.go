package audit

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
)

// maxEventRows ends a batch of events early; they are few and wide.
const maxEventRows = 20_000

// copyEvents is one epoch of the trail.
func (w *Writer) copyEvents(ctx context.Context, s *session) error {
	last, stored, hash, err := s.store.lastEvent(ctx)
	if err != nil {
		return err
	}
	end, err := w.cfg.Log.Last(ctx)
	if err != nil {
		return err
	}
	if end < last {
		return stop("the lifecycle log ends at event %d, but its copy in %s has event %d: the log lost events or was restored from an older backup; "+
			"restore all of it, or start a new log with a new audit database", end, s.store, last)
	}
	w.metrics.move(sourceEvents, last, end)
	out := make(chan []events.Recorded)
	feed := &eventFeed{last: last, stored: stored, hash: hash, out: out, metrics: w.metrics, store: s.store}
	g, ctx := errgroup.WithContext(ctx)
	feed.ctx = ctx
	g.Go(func() error { return w.cfg.Log.Follow(ctx, max(last, 1)-1, feed) }) // from the last event that the copy has
	g.Go(func() error { return w.insertEvents(ctx, s, out) })
	return g.Wait()
}

// lastEvent returns the sequence, the time and the hash of the trail's last row.
func (s *Store) lastEvent(ctx context.Context) (events.Seq, events.Time, events.Hash, error) {
	seq, stored, err := s.offset(ctx, "events")
	if err != nil || seq == 0 {
		return 0, 0, events.Hash{}, err
	}
	var hash string
	err = s.conn.QueryRow(ctx, "SELECT hash FROM events WHERE stored = (SELECT max(stored) FROM events) AND seq = {seq:UInt64}",
		named("seq", uint64(seq))).Scan(&hash)
	if err != nil {
		return 0, 0, events.Hash{}, s.fault(ctx, "read the trail's last row", err)
	}
	return seq, stored, events.Hash([]byte(hash)), nil
}

// eventFeed is the follower: it hands on what the trail does not have.
type eventFeed struct {
	ctx     context.Context // of the epoch
	store   *Store
	out     chan<- []events.Recorded
	metrics *writerMetrics

	// Owned by Follow.
	last   events.Seq  // everything up to here is in the trail or handed on
	stored events.Time // of event last, as the trail has it
	hash   events.Hash // of the trail's last row, until it has been seen again in the log
}

// Apply implements events.Follower.
func (f *eventFeed) Apply(batch []events.Recorded) error {
	if first := &batch[0]; first.Seq == f.last && !f.hash.IsZero() {
		if first.Hash != f.hash {
			return stop("event %d of the lifecycle log is not the one that its copy in %s has: the log was replaced by another history; "+
				"find out which is right before anything is written", first.Seq, f.store)
		}
		f.hash = events.Hash{}
		batch = batch[1:]
	}
	if len(batch) == 0 {
		return nil
	}
	if batch[0].Seq != f.last+1 {
		return stop("the lifecycle log delivered event %d where %d belongs; nothing may be skipped", batch[0].Seq, f.last+1)
	}
	f.last = batch[len(batch)-1].Seq
	batch = slices.Clone(batch)
	for i := range batch {
		notBefore(&f.stored, &batch[i].Stored)
	}
	select {
	case f.out <- batch:
		return nil
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	}
}

// Fresh implements events.Follower.
func (f *eventFeed) Fresh(_ events.Time, last events.Seq) { f.metrics.move(sourceEvents, 0, last) }

// insertEvents gathers what comes within the linger and inserts it.
func (w *Writer) insertEvents(ctx context.Context, s *session, in <-chan []events.Recorded) error {
	var rows eventRows
	rows.init()
	for {
		var batch []events.Recorded
		select {
		case batch = <-in:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		linger := time.NewTimer(w.cfg.Linger)
		for open := true; open && len(batch) < maxEventRows; {
			select {
			case more := <-in:
				batch = append(batch, more...)
			case <-linger.C:
				open = false
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		linger.Stop()
		for part := range byMonth(batch) {
			rows.reset()
			for i := range part {
				if err := rows.add(&part[i]); err != nil {
					return err
				}
			}
			began := time.Now()
			if err := s.insert(ctx, "events", rows.input); err != nil {
				return err
			}
			w.metrics.inserted(sourceEvents, part[len(part)-1].Seq, len(part), len(part), time.Since(began))
		}
	}
}

// byMonth cuts a batch where the log's month changes (A2).
func byMonth(batch []events.Recorded) func(yield func([]events.Recorded) bool) {
	return func(yield func([]events.Recorded) bool) {
		for len(batch) > 0 {
			n := 1
			for n < len(batch) && month(batch[n].Stored) == month(batch[0].Stored) {
				n++
			}
			if !yield(batch[:n]) {
				return
			}
			batch = batch[n:]
		}
	}
}

// eventRows are the columns of one insert into events.
type eventRows struct {
	seq, rev                                                            proto.ColUInt64
	stored, time                                                        proto.ColDateTime64
	id, aggregate, command, actorID, userAgent, requestID, reason, data proto.ColStr
	typ, keyspace, tenant, kind, source, actorKind                      *proto.ColLowCardinality[string]
	prev, hash                                                          proto.ColFixedStr
	ip                                                                  proto.ColIPv6
	input                                                               proto.Input
}

func (c *eventRows) init() {
	c.stored.WithPrecision(proto.PrecisionMilli)
	c.time.WithPrecision(proto.PrecisionMilli)
	c.prev.SetSize(32)
	c.hash.SetSize(32)
	for _, p := range []**proto.ColLowCardinality[string]{&c.typ, &c.keyspace, &c.tenant, &c.kind, &c.source, &c.actorKind} {
		*p = new(proto.ColStr).LowCardinality()
	}
	c.input = proto.Input{
		{Name: "seq", Data: &c.seq}, {Name: "stored", Data: &c.stored}, {Name: "time", Data: &c.time}, {Name: "id", Data: &c.id},
		{Name: "type", Data: c.typ}, {Name: "keyspace", Data: c.keyspace}, {Name: "tenant", Data: c.tenant}, {Name: "kind", Data: c.kind},
		{Name: "aggregate_id", Data: &c.aggregate}, {Name: "rev", Data: &c.rev}, {Name: "prev", Data: &c.prev}, {Name: "hash", Data: &c.hash},
		{Name: "source", Data: c.source}, {Name: "command", Data: &c.command}, {Name: "actor_kind", Data: c.actorKind},
		{Name: "actor_id", Data: &c.actorID}, {Name: "ip", Data: &c.ip}, {Name: "user_agent", Data: &c.userAgent},
		{Name: "request_id", Data: &c.requestID}, {Name: "reason", Data: &c.reason}, {Name: "data", Data: &c.data},
	}
}

func (c *eventRows) reset() { c.input.Reset() }

func (c *eventRows) add(r *events.Recorded) error {
	data, err := json.Marshal(r.Data, json.Deterministic(true))
	if err != nil {
		return stop("event %d (%s) cannot be written as JSON: %v", r.Seq, r.Type(), err)
	}
	c.seq.Append(uint64(r.Seq))
	c.stored.AppendRaw(proto.DateTime64(r.Stored))
	c.time.AppendRaw(proto.DateTime64(r.Time))
	c.id.Append(r.ID.String())
	c.typ.Append(string(r.Type()))
	c.keyspace.Append(string(r.Aggregate.Keyspace))
	c.tenant.Append(string(r.Aggregate.Tenant))
	c.kind.Append(string(r.Aggregate.Kind))
	c.aggregate.Append(r.Aggregate.ID)
	c.rev.Append(r.Rev)
	c.prev.Append(r.Prev[:])
	c.hash.Append(r.Hash[:])
	c.source.Append(r.Source)
	c.command.Append(r.Command)
	c.actorKind.Append(string(r.Actor.Kind))
	c.actorID.Append(r.Actor.ID)
	c.ip.Append(ipv6(r.IP))
	c.userAgent.Append(r.UserAgent)
	c.requestID.Append(r.RequestID)
	c.reason.Append(r.Reason)
	c.data.AppendBytes(data)
	return nil
}

// ipv6 is an address as the tables hold it: IPv4 mapped into IPv6, :: for none.
func ipv6(a netip.Addr) proto.IPv6 {
	if !a.IsValid() {
		return proto.IPv6{}
	}
	return a.As16()
}
