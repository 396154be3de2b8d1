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

// trailSource names the source of each log that the trail holds.
var trailSource = map[events.Stream]string{events.Lifecycle: sourceEvents, events.Reads: sourceReads}

// trail returns what is one epoch of the copy of one of the two logs of events.
func (w *Writer) trail(stream events.Stream, log events.Log) func(context.Context, *session) error {
	return func(ctx context.Context, s *session) error { return w.copyTrail(ctx, s, stream, log) }
}

func (w *Writer) copyTrail(ctx context.Context, s *session, stream events.Stream, log events.Log) error {
	source := trailSource[stream]
	have, err := s.store.copied(ctx, stream)
	if err != nil {
		return err
	}
	last := have.seq()
	end, err := events.LastAtLeast(ctx, log, last)
	if err != nil {
		return err
	}
	if end < last {
		return stop("the log of %s ends at event %d, but its copy in %s has event %d: the log lost events or was restored from an older backup; "+
			"restore all of it, or start a new log with a new audit database", stream, end, s.store, last)
	}
	w.metrics.copied(source, last)
	w.metrics.ends(source, end)
	out := make(chan []events.Recorded)
	feed := &eventFeed{stream: stream, copied: have, resumed: last > 0, out: out, metrics: w.metrics, store: s.store}
	if stream == events.Lifecycle {
		feed.history = w.cfg.History
	}
	g, ctx := errgroup.WithContext(ctx)
	feed.ctx = ctx
	feed.stops = make(chan error, 1)
	g.Go(func() error {
		select {
		case err := <-feed.stops:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	g.Go(func() error { return log.Follow(ctx, max(last, 1)-1, feed) }) // from the last event that the copy has
	g.Go(func() error { return w.insertEvents(ctx, s, source, have, out) })
	return g.Wait()
}

// eventFeed is the follower: it hands on what the trail does not have.
type eventFeed struct {
	ctx     context.Context // of the epoch
	stream  events.Stream
	store   *Store
	out     chan<- []events.Recorded
	metrics *WriterMetrics
	history History    // nil: compares nothing
	stops   chan error // ends the epoch where Apply is not called

	// Owned by Follow.
	copied  copied // is in the trail or handed on
	resumed bool   // the trail's last row has not been seen again in the log yet
	foreign error  // the log is of another history than the copy
}

// Apply implements events.Follower.
func (f *eventFeed) Apply(batch []events.Recorded) error {
	if f.foreign != nil {
		return f.foreign
	}
	if first := &batch[0]; first.Seq == f.copied.seq() && f.resumed {
		if first.Hash != f.copied.hash {
			return stop("event %d of the log of %s is not the one that its copy in %s has: the log was replaced by another history; "+
				"find out which is right before anything is written", first.Seq, f.stream, f.store)
		}
		f.resumed = false
		batch = batch[1:]
	}
	if len(batch) == 0 {
		return nil
	}
	if batch[0].Seq != f.copied.seq()+1 {
		return stop("the log of %s delivered event %d where %d belongs; nothing may be skipped", f.stream, batch[0].Seq, f.copied.seq()+1)
	}
	for i := range batch {
		f.copied.take(&batch[i])
	}
	if err := f.recognise(); err != nil {
		return err
	}
	select {
	case f.out <- slices.Clone(batch):
		return nil
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	}
}

// Fresh implements events.Follower.
func (f *eventFeed) Fresh(_ events.Time, last events.Seq) {
	f.metrics.ends(trailSource[f.stream], last)
	if f.foreign == nil {
		if f.foreign = f.recognise(); f.foreign != nil {
			f.stops <- f.foreign
		}
	}
}

// insertEvents gathers what comes within the linger and inserts it after what the
// trail has.
func (w *Writer) insertEvents(ctx context.Context, s *session, source string, have copied, in <-chan []events.Recorded) error {
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
				have.take(&part[i])
				if i == len(part)-1 {
					rows.head(&have)
				} else {
					rows.tree.Append("")
				}
			}
			began := time.Now()
			if err := s.insert(ctx, "events", rows.input); err != nil {
				return err
			}
			w.metrics.inserted(source, part[len(part)-1].Seq, len(part), len(part), time.Since(began))
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
	seq, rev                                                                            proto.ColUInt64
	stored, time                                                                        proto.ColDateTime64
	id, aggregate, command, actorID, userAgent, requestID, reason, data, document, tree proto.ColStr
	stream, typ, keyspace, tenant, kind, source, actorKind                              *proto.ColLowCardinality[string]
	prev, hash                                                                          proto.ColFixedStr
	ip                                                                                  proto.ColIPv6
	known                                                                               proto.ColBool
	input                                                                               proto.Input
}

func (c *eventRows) init() {
	c.stored.WithPrecision(proto.PrecisionMilli)
	c.time.WithPrecision(proto.PrecisionMilli)
	c.prev.SetSize(32)
	c.hash.SetSize(32)
	for _, p := range []**proto.ColLowCardinality[string]{&c.stream, &c.typ, &c.keyspace, &c.tenant, &c.kind, &c.source, &c.actorKind} {
		*p = new(proto.ColStr).LowCardinality()
	}
	c.input = proto.Input{
		{Name: "stream", Data: c.stream}, {Name: "seq", Data: &c.seq}, {Name: "stored", Data: &c.stored}, {Name: "time", Data: &c.time}, {Name: "id", Data: &c.id},
		{Name: "type", Data: c.typ}, {Name: "keyspace", Data: c.keyspace}, {Name: "tenant", Data: c.tenant}, {Name: "kind", Data: c.kind},
		{Name: "aggregate_id", Data: &c.aggregate}, {Name: "rev", Data: &c.rev}, {Name: "prev", Data: &c.prev}, {Name: "hash", Data: &c.hash},
		{Name: "source", Data: c.source}, {Name: "command", Data: &c.command}, {Name: "actor_kind", Data: c.actorKind},
		{Name: "actor_id", Data: &c.actorID}, {Name: "ip", Data: &c.ip}, {Name: "ip_known", Data: &c.known}, {Name: "user_agent", Data: &c.userAgent},
		{Name: "request_id", Data: &c.requestID}, {Name: "reason", Data: &c.reason}, {Name: "data", Data: &c.data}, {Name: "document", Data: &c.document}, {Name: "tree", Data: &c.tree},
	}
}

func (c *eventRows) reset() { c.input.Reset() }

func (c *eventRows) add(r *events.Recorded) error {
	data, err := json.Marshal(r.Data, json.Deterministic(true))
	if err != nil {
		return stop("event %d (%s) cannot be written as JSON: %v", r.Seq, r.Type(), err)
	}
	c.stream.Append(string(r.Aggregate.Stream()))
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
	c.known.Append(r.IP.IsValid())
	c.userAgent.Append(r.UserAgent)
	c.requestID.Append(r.RequestID)
	c.reason.Append(r.Reason)
	c.data.AppendBytes(data)
	c.document.AppendBytes(r.Document)
	return nil
}

// head notes on the row added last how far the copy is with it.
func (c *eventRows) head(have *copied) {
	b, _ := have.tree.MarshalBinary() // never fails
	c.tree.AppendBytes(b)
}

// ipv6 is an address as the tables hold it: IPv4 mapped into IPv6, :: for none.
func ipv6(a netip.Addr) proto.IPv6 {
	if !a.IsValid() {
		return proto.IPv6{}
	}
	return a.As16()
}
