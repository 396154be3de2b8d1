package audit

import (
	"context"
	"errors"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/oklog/ulid/v2"
	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
)

// readMessages is how many messages of the use stream are asked for at once.
const readMessages = 256

// copyUses is one epoch of the ledger: one goroutine reads and decodes, the other
// inserts, with two blocks going round between them.
func (w *Writer) copyUses(ctx context.Context, s *session) error {
	// use_batches is inserted last, so its offset is where all tables are
	// complete; uses may be one block ahead, and takes only what it lacks.
	after, stored, err := s.store.offset(ctx, "use_batches")
	if err != nil {
		return err
	}
	have, _, err := s.store.offset(ctx, "uses")
	if err != nil {
		return err
	}
	end, err := w.cfg.Uses.LastUse(ctx)
	if err != nil {
		return err
	}
	if end < max(after, have) {
		return stop("the use stream ends at message %d, but its copy in %s has message %d: the stream lost messages or was restored from an older backup; "+
			"restore all of it, or start a new log with a new audit database", end, s.store, max(after, have))
	}
	w.metrics.move(sourceUses, after, end)
	roll, err := s.newRoller(ctx, after)
	if err != nil {
		return err
	}
	r := &useReader{w: w, after: after, stored: stored, have: have, log: w.cfg.Log.ID()}
	full, empty := make(chan *useBlock), make(chan *useBlock, 2)
	empty <- newUseBlock()
	empty <- newUseBlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.run(ctx, empty, full) })
	g.Go(func() error { return w.insertUses(ctx, s, roll, full, empty) })
	g.Go(func() error { return w.watchUses(ctx) })
	return g.Wait()
}

// insertUses stores blocks as they come, and rolls up now and then.
func (w *Writer) insertUses(ctx context.Context, s *session, roll *roller, full <-chan *useBlock, empty chan<- *useBlock) error {
	tick := time.NewTicker(w.rollupEvery)
	defer tick.Stop()
	for {
		select {
		case b := <-full:
			began := time.Now()
			if b.n.Rows() > 0 {
				if err := s.insert(ctx, "uses", b.uses); err != nil {
					return err
				}
			}
			// crash here: the next epoch finds uses ahead of use_batches.
			if err := s.insert(ctx, "use_batches", b.batches); err != nil {
				return err
			}
			roll.to = b.last
			w.metrics.inserted(sourceUses, b.last, b.messages, b.n.Rows(), time.Since(began))
			b.reset()
			empty <- b
		case <-tick.C:
			if err := roll.run(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watchUses asks where the stream ends, for the lag.
func (w *Writer) watchUses(ctx context.Context) error {
	for {
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		end, err := w.cfg.Uses.LastUse(ctx)
		if err == nil { // else the reader meets the same error and says so
			w.metrics.move(sourceUses, 0, end)
		}
	}
}

// useReader turns messages into blocks.
type useReader struct {
	w      *Writer
	log    events.LogID
	after  events.Seq  // read and in a block
	stored events.Time // of the last message read, as use_batches has it or will
	have   events.Seq  // in the table uses already

	pending []events.UseMessage  // read, not yet in a block
	trimmed *events.TrimmedError // to be written down with the next message
}

// run fills blocks and hands them on.
func (r *useReader) run(ctx context.Context, empty <-chan *useBlock, full chan<- *useBlock) error {
	for {
		var b *useBlock
		select {
		case b = <-empty:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := r.fill(ctx, b); err != nil {
			return err
		}
		select {
		case full <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fill adds messages until the block is full, its linger is over, or the next
// message belongs to another month.
func (r *useReader) fill(ctx context.Context, b *useBlock) error {
	lctx := ctx // waits for the first message without end
	for {
		if len(r.pending) == 0 {
			err := r.read(lctx)
			if ctx.Err() == nil && lctx.Err() != nil && len(r.pending) == 0 {
				return nil // the linger is over
			}
			if err != nil {
				return err
			}
		}
		for len(r.pending) > 0 {
			m := &r.pending[0]
			if b.messages > 0 && month(m.Stored) != b.month {
				return nil
			}
			if err := r.add(b, m); err != nil {
				return err
			}
			r.pending = r.pending[1:]
			if b.n.Rows() >= r.w.cfg.MaxRows || b.messages >= r.w.cfg.MaxRows {
				return nil
			}
		}
		if lctx == ctx {
			l, cancel := context.WithTimeout(ctx, r.w.cfg.Linger)
			defer cancel()
			lctx = l
		}
	}
}

// read asks the stream for what follows.
func (r *useReader) read(ctx context.Context) error {
	msgs, err := r.w.cfg.Uses.ReadUses(ctx, r.after, readMessages)
	var trimmed *events.TrimmedError
	if errors.As(err, &trimmed) && trimmed.First > r.after+1 {
		r.w.cfg.Logger.ErrorContext(ctx, "uses are lost: the use stream dropped messages before the audit copy read them",
			"first_seq", r.after+1, "last_seq", trimmed.First-1)
		r.w.metrics.trimmed.Add(float64(trimmed.First - r.after - 1))
		from := r.after
		if r.trimmed != nil { // more was dropped before a message came
			from = r.trimmed.After
		}
		r.trimmed = &events.TrimmedError{After: from, First: trimmed.First}
		r.after = trimmed.First - 1
		return nil
	}
	if err != nil {
		return err
	}
	for i := range msgs {
		notBefore(&r.stored, &msgs[i].Stored)
	}
	r.pending = msgs
	return nil
}

// add decodes one message into the block.
func (r *useReader) add(b *useBlock, m *events.UseMessage) error {
	if m.Seq <= r.after {
		return stop("the use stream delivered message %d after %d; it must only go forward", m.Seq, r.after)
	}
	batch, err := events.DecodeUses(m.Data)
	if err != nil {
		return stop("message %d of the use stream (node %s) cannot be read: %v; upgrade this process if a newer Keytrail wrote it, "+
			"else the stream is damaged", m.Seq, m.Node, err)
	}
	switch {
	case batch.Node != m.Node:
		return stop("message %d of the use stream stands under node %s but says node %s: someone wrote in another's name", m.Seq, m.Node, batch.Node)
	case batch.Log != r.log:
		return stop("message %d of the use stream (node %s) belongs to log %s, not to log %s: the node read another log", m.Seq, m.Node, batch.Log, r.log)
	}
	if t := r.trimmed; t != nil {
		b.note(t.First-1, m.Stored, "", 0, "trimmed", uint64(t.After)+1, uint64(t.First-t.After)-1, "dropped by the stream's retention before they were copied")
		r.trimmed = nil
	} else if m.Seq != r.after+1 {
		// A hole inside the stream: not retention, which takes from the front.
		return stop("the use stream has no message %d, but message %d: messages were deleted from it; restore it, or accept the loss by starting a new audit database", r.after+1, m.Seq)
	}
	b.add(m, &batch, m.Seq > r.have)
	r.after = m.Seq
	return nil
}

// useBlock are the columns of one insert into uses and one into use_batches:
// whole messages of one month.
type useBlock struct {
	messages int
	last     events.Seq
	month    uint32

	seq, n, position                                proto.ColUInt64
	storedAt, time                                  proto.ColDateTime64
	epoch                                           proto.ColInt64
	keyID, resourceID                               proto.ColStr
	node, keyspace, tenant, reason, scope, resource *proto.ColLowCardinality[string]
	ip                                              proto.ColIPv6
	cost                                            proto.ColUInt32
	uses                                            proto.Input

	bSeq, bFirst, bCount proto.ColUInt64
	bStored              proto.ColDateTime64
	bEpoch               proto.ColInt64
	bNode                *proto.ColLowCardinality[string]
	bKind                proto.ColEnum
	bNote                proto.ColStr
	batches              proto.Input

	key [30]byte // "key_" and a ULID, reused
}

func newUseBlock() *useBlock {
	b := new(useBlock)
	for _, t := range []*proto.ColDateTime64{&b.storedAt, &b.time, &b.bStored} {
		t.WithPrecision(proto.PrecisionMilli)
	}
	for _, p := range []**proto.ColLowCardinality[string]{&b.node, &b.keyspace, &b.tenant, &b.reason, &b.scope, &b.resource, &b.bNode} {
		*p = new(proto.ColStr).LowCardinality()
	}
	b.uses = proto.Input{
		{Name: "seq", Data: &b.seq}, {Name: "stored", Data: &b.storedAt}, {Name: "node", Data: b.node}, {Name: "epoch", Data: &b.epoch},
		{Name: "n", Data: &b.n}, {Name: "time", Data: &b.time}, {Name: "keyspace", Data: b.keyspace}, {Name: "tenant", Data: b.tenant},
		{Name: "key_id", Data: &b.keyID}, {Name: "reason", Data: b.reason}, {Name: "scope", Data: b.scope},
		{Name: "resource_kind", Data: b.resource}, {Name: "resource_id", Data: &b.resourceID}, {Name: "ip", Data: &b.ip},
		{Name: "cost", Data: &b.cost}, {Name: "position", Data: &b.position},
	}
	b.batches = proto.Input{
		{Name: "seq", Data: &b.bSeq}, {Name: "stored", Data: &b.bStored}, {Name: "node", Data: b.bNode}, {Name: "epoch", Data: &b.bEpoch},
		{Name: "kind", Data: &b.bKind}, {Name: "first", Data: &b.bFirst}, {Name: "count", Data: &b.bCount}, {Name: "note", Data: &b.bNote},
	}
	return b
}

func (b *useBlock) reset() {
	b.messages = 0
	b.uses.Reset()
	b.batches.Reset()
}

var kindNames = map[events.BatchKind]string{events.BatchUses: "uses", events.BatchOpen: "open", events.BatchClose: "close", events.BatchGap: "gap"}

// add appends a message; its uses only if the table lacks them.
func (b *useBlock) add(m *events.UseMessage, batch *events.UseBatch, withUses bool) {
	b.note(m.Seq, m.Stored, batch.Node, batch.Epoch, kindNames[batch.Kind], batch.First, batch.Len(), batch.Note)
	b.messages++
	b.last, b.month = m.Seq, month(m.Stored)
	if !withUses {
		return
	}
	for i := range batch.Uses {
		u := &batch.Uses[i]
		b.seq.Append(uint64(m.Seq))
		b.storedAt.AppendRaw(proto.DateTime64(m.Stored))
		b.node.Append(string(batch.Node))
		b.epoch.Append(batch.Epoch)
		b.n.Append(batch.First + uint64(i))
		b.time.AppendRaw(proto.DateTime64(u.Time))
		b.keyspace.Append(string(u.Keyspace))
		b.tenant.Append(string(u.Tenant))
		b.keyID.AppendBytes(b.keyText(u.Key))
		b.reason.Append(u.Reason.String())
		b.scope.Append(u.Scope)
		b.resource.Append(u.Resource.Kind)
		b.resourceID.Append(u.Resource.ID)
		b.ip.Append(ipv6(u.IP))
		b.cost.Append(u.Cost)
		b.position.Append(uint64(u.Seq))
	}
}

// keyText is k.String() without allocating.
func (b *useBlock) keyText(k events.KeyID) []byte {
	if k.IsZero() {
		return nil
	}
	copy(b.key[:4], "key_")
	if err := ulid.ULID(k).MarshalTextTo(b.key[4:]); err != nil {
		panic(err) // the buffer has the right length
	}
	return b.key[:]
}

// note appends a row of use_batches.
func (b *useBlock) note(seq events.Seq, stored events.Time, node events.NodeID, epoch int64, kind string, first, count uint64, note string) {
	b.bSeq.Append(uint64(seq))
	b.bStored.AppendRaw(proto.DateTime64(stored))
	b.bNode.Append(string(node))
	b.bEpoch.Append(epoch)
	b.bKind.Append(kind)
	b.bFirst.Append(first)
	b.bCount.Append(count)
	b.bNote.Append(note)
}
