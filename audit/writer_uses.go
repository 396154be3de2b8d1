package audit

import (
	"context"
	"errors"
	"net/netip"
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
	// use_batches is inserted last, so its offset is where all tables are complete;
	// the others may be one block ahead, and take only what they lack.
	after, stored, err := s.store.offset(ctx, "use_batches")
	if err != nil {
		return err
	}
	have, _, err := s.store.offset(ctx, "uses")
	if err != nil {
		return err
	}
	haveTallies, _, err := s.store.offset(ctx, "use_suppressed")
	if err != nil {
		return err
	}
	seen := max(after, have, haveTallies)
	end, err := events.LastUseAtLeast(ctx, w.cfg.Uses, seen)
	if err != nil {
		return err
	}
	if end < seen {
		return stop("the use stream ends at message %d, but its copy in %s has message %d: the stream lost messages or was restored from an older backup; "+
			"restore all of it, or start a new log with a new audit database", end, s.store, seen)
	}
	w.metrics.copied(sourceUses, after)
	w.metrics.ends(sourceUses, end)
	roll, err := s.newRoller(ctx, after)
	if err != nil {
		return err
	}
	nodes, err := s.store.places(ctx, after)
	if err != nil {
		return err
	}
	r := &useReader{w: w, after: after, stored: stored, have: have, haveTallies: haveTallies, log: events.LineageOf(w.cfg.Log), nodes: nodes}
	full, empty := make(chan *useBlock), make(chan *useBlock, 2)
	empty <- newUseBlock()
	empty <- newUseBlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.run(ctx, empty, full) })
	g.Go(func() error { return w.insertUses(ctx, s, roll, full, empty) })
	return g.Wait()
}

// insertUses stores blocks as they come, and rolls up now and then.
func (w *Writer) insertUses(ctx context.Context, s *session, roll *roller, full <-chan *useBlock, empty chan<- *useBlock) error {
	tick := time.NewTicker(w.rollupEvery)
	defer tick.Stop()
	for {
		if told, ok := w.cfg.Uses.(events.CopiedSource); ok {
			_ = told.Copied(roll.to) // told again with the next tick
		}
		select {
		case b := <-full:
			began := time.Now()
			if b.n.Rows() > 0 {
				if err := s.insert(ctx, "uses", b.uses); err != nil {
					return err
				}
			}
			if b.tN.Rows() > 0 {
				if err := s.insert(ctx, "use_suppressed", b.tallies); err != nil {
					return err
				}
			}
			// crash here: the next epoch finds the other tables ahead of use_batches.
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

// useReader turns messages into blocks.
type useReader struct {
	w      *Writer
	log    events.Lineage
	after  events.Seq  // read and in a block
	stored events.Time // of message after
	have   events.Seq  // in the table uses already

	haveTallies events.Seq // in the table use_suppressed already
	nodes       places

	pending []events.UseMessage  // read, not yet in a block
	trimmed *events.TrimmedError // to be written down with the next message
	since   events.Time          // of the message before the trimmed ones; 0 = there was none
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
			if b.n.Rows() >= r.w.cfg.MaxRows || b.messages >= r.w.cfg.MaxRows || b.aside >= maxAside {
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
		} else {
			r.since = r.stored
		}
		r.trimmed = &events.TrimmedError{After: from, First: trimmed.First}
		r.after = trimmed.First - 1
		return nil
	}
	if err != nil {
		return err
	}
	r.pending = msgs
	return nil
}

// add decodes one message into the block.
func (r *useReader) add(b *useBlock, m *events.UseMessage) error {
	if m.Seq <= r.after {
		return stop("the use stream delivered message %d after %d; it must only go forward", m.Seq, r.after)
	}
	if m.Seq != r.after+1 { // also after a trimmed range: r.after is then its end
		// A hole inside the stream: not retention, which takes from the front.
		return stop("the use stream has no message %d, but message %d: messages were deleted from it; restore it, or accept the loss by starting a new audit database", r.after+1, m.Seq)
	}
	if t := r.trimmed; t != nil {
		b.note(t.First-1, m.Stored, "", 0, "trimmed", uint64(t.After)+1, uint64(t.First-t.After)-1, "dropped by the stream's retention before they were copied",
			min(r.since, m.Stored), max(r.since, m.Stored)) // the log's clock may have been set meanwhile
		r.trimmed = nil
	}
	batch, reason := r.nodes.misfit(m, &r.log)
	if reason != "" {
		r.w.metrics.quarantined.Inc()
		r.w.asides.tell(r.w.cfg.Logger, time.Now(), m, reason)
		b.quarantine(m, reason)
		r.after, r.stored = m.Seq, m.Stored
		return nil
	}
	if last, ok := r.nodes.take(&batch); ok {
		b.note(m.Seq, m.Stored, batch.Node, last.epoch, "unended", last.next, 0, "the node began a new epoch and did not end this one", m.Stored, m.Stored)
	}
	r.w.metrics.heard(m.Node, m.Stored, batch.Uses)
	b.add(m, &batch, m.Seq > r.have)
	if m.Seq > r.haveTallies {
		b.tally(m, &batch)
	}
	r.after, r.stored = m.Seq, m.Stored
	return nil
}

// maxAside is how many bytes of messages that are set aside make a block full.
const maxAside = 16 << 20

// useBlock are the columns of one insert into uses and one into use_batches:
// whole messages of one month.
type useBlock struct {
	messages int
	aside    int // bytes of the messages that are set aside
	last     events.Seq
	month    uint32

	seq, n, position                                proto.ColUInt64
	storedAt, time                                  proto.ColDateTime64
	epoch                                           proto.ColInt64
	keyID, resourceID, requestID                    proto.ColStr
	node, keyspace, tenant, reason, scope, resource *proto.ColLowCardinality[string]
	endpoint                                        *proto.ColLowCardinality[string]
	ip                                              proto.ColIPv6
	known                                           proto.ColBool
	cost                                            proto.ColUInt32
	uses                                            proto.Input

	bSeq, bFirst, bCount proto.ColUInt64
	bStored              proto.ColDateTime64
	bSince, bUntil       proto.ColDateTime64
	bEpoch               proto.ColInt64
	bNode                *proto.ColLowCardinality[string]
	bKind                proto.ColEnum
	bNote, bData         proto.ColStr
	batches              proto.Input

	tSeq, tN           proto.ColUInt64
	tStored            proto.ColDateTime64
	tTime, tUntil      proto.ColDateTime64
	tBlock             proto.ColIPv6
	tBits              proto.ColUInt8
	tKnown             proto.ColBool
	tEpoch             proto.ColInt64
	tNode, tKeys, tWhy *proto.ColLowCardinality[string]
	tallies            proto.Input

	id [30]byte // "key_" or "req_" and a ULID, reused
}

func newUseBlock() *useBlock {
	b := new(useBlock)
	for _, t := range []*proto.ColDateTime64{&b.storedAt, &b.time, &b.bStored, &b.bSince, &b.bUntil, &b.tStored, &b.tTime, &b.tUntil} {
		t.WithPrecision(proto.PrecisionMilli)
	}
	for _, p := range []**proto.ColLowCardinality[string]{&b.node, &b.keyspace, &b.tenant, &b.reason, &b.scope, &b.resource, &b.endpoint, &b.bNode, &b.tNode, &b.tKeys, &b.tWhy} {
		*p = new(proto.ColStr).LowCardinality()
	}
	b.uses = proto.Input{
		{Name: "seq", Data: &b.seq}, {Name: "stored", Data: &b.storedAt}, {Name: "node", Data: b.node}, {Name: "epoch", Data: &b.epoch},
		{Name: "n", Data: &b.n}, {Name: "time", Data: &b.time}, {Name: "keyspace", Data: b.keyspace}, {Name: "tenant", Data: b.tenant},
		{Name: "key_id", Data: &b.keyID}, {Name: "reason", Data: b.reason}, {Name: "scope", Data: b.scope},
		{Name: "resource_kind", Data: b.resource}, {Name: "resource_id", Data: &b.resourceID}, {Name: "ip", Data: &b.ip}, {Name: "ip_known", Data: &b.known},
		{Name: "cost", Data: &b.cost}, {Name: "position", Data: &b.position},
		{Name: "endpoint", Data: b.endpoint}, {Name: "request_id", Data: &b.requestID},
	}
	b.batches = proto.Input{
		{Name: "seq", Data: &b.bSeq}, {Name: "stored", Data: &b.bStored}, {Name: "node", Data: b.bNode}, {Name: "epoch", Data: &b.bEpoch},
		{Name: "kind", Data: &b.bKind}, {Name: "first", Data: &b.bFirst}, {Name: "count", Data: &b.bCount}, {Name: "note", Data: &b.bNote},
		{Name: "since", Data: &b.bSince}, {Name: "until", Data: &b.bUntil}, {Name: "data", Data: &b.bData},
	}
	b.tallies = proto.Input{
		{Name: "seq", Data: &b.tSeq}, {Name: "stored", Data: &b.tStored}, {Name: "node", Data: b.tNode}, {Name: "epoch", Data: &b.tEpoch},
		{Name: "time", Data: &b.tTime}, {Name: "until", Data: &b.tUntil},
		{Name: "block", Data: &b.tBlock}, {Name: "block_bits", Data: &b.tBits}, {Name: "block_known", Data: &b.tKnown},
		{Name: "keyspace", Data: b.tKeys}, {Name: "reason", Data: b.tWhy}, {Name: "n", Data: &b.tN},
	}
	return b
}

func (b *useBlock) reset() {
	b.messages, b.aside = 0, 0
	b.uses.Reset()
	b.batches.Reset()
	b.tallies.Reset()
}

var kindNames = map[events.BatchKind]string{events.BatchUses: "uses", events.BatchOpen: "open", events.BatchClose: "close", events.BatchGap: "gap",
	events.BatchSuppressed: "suppressed"}

// add appends a message; its uses only if the table lacks them.
func (b *useBlock) add(m *events.UseMessage, batch *events.UseBatch, withUses bool) {
	b.note(m.Seq, m.Stored, batch.Node, batch.Epoch, kindNames[batch.Kind], batch.First, batch.Len(), batch.Note, batch.Since, batch.Until)
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
		b.keyID.AppendBytes(b.idText("key_", u.Key))
		b.reason.Append(u.Reason.String())
		b.scope.Append(u.Scope)
		b.resource.Append(u.Resource.Kind)
		b.resourceID.Append(u.Resource.ID)
		b.ip.Append(ipv6(u.IP))
		b.known.Append(u.IP.IsValid())
		b.cost.Append(u.Cost)
		b.position.Append(uint64(u.Seq))
		b.endpoint.Append(u.Endpoint)
		b.requestID.AppendBytes(b.idText("req_", u.RequestID))
	}
}

// tally appends the tallies of a message.
func (b *useBlock) tally(m *events.UseMessage, batch *events.UseBatch) {
	for _, t := range batch.Tallies {
		b.tSeq.Append(uint64(m.Seq))
		b.tStored.AppendRaw(proto.DateTime64(m.Stored))
		b.tNode.Append(string(batch.Node))
		b.tEpoch.Append(batch.Epoch)
		b.tTime.AppendRaw(proto.DateTime64(t.Time))
		b.tUntil.AppendRaw(proto.DateTime64(t.Until))
		b.tBlock.Append(ipv6(t.Block.Addr()))
		b.tBits.Append(mappedBits(t.Block))
		b.tKnown.Append(t.Block.IsValid())
		b.tKeys.Append(string(t.Keyspace))
		b.tWhy.Append(t.Reason.String())
		b.tN.Append(t.Count)
	}
}

// mappedBits is the length of a prefix as the tables hold its address; 0 for none.
func mappedBits(p netip.Prefix) uint8 {
	switch {
	case !p.IsValid():
		return 0
	case p.Addr().Is4():
		return uint8(96 + p.Bits())
	}
	return uint8(p.Bits())
}

// idText is the text of a key's or a request's id, "" for the zero id, without
// allocating.
func (b *useBlock) idText(prefix string, id [16]byte) []byte {
	if id == ([16]byte{}) {
		return nil
	}
	copy(b.id[:4], prefix)
	if err := ulid.ULID(id).MarshalTextTo(b.id[4:]); err != nil {
		panic(err) // the buffer has the right length
	}
	return b.id[:]
}

// quarantine appends a message that is set aside.
func (b *useBlock) quarantine(m *events.UseMessage, reason string) {
	b.row(m.Seq, m.Stored, m.Node, 0, "quarantined", 0, 0, reason, m.Stored, m.Stored, m.Data)
	b.messages++
	b.aside += len(m.Data)
	b.last, b.month = m.Seq, month(m.Stored)
}

// note appends a row of use_batches.
func (b *useBlock) note(seq events.Seq, stored events.Time, node events.NodeID, epoch int64, kind string, first, count uint64, note string, since, until events.Time) {
	b.row(seq, stored, node, epoch, kind, first, count, note, since, until, nil)
}

func (b *useBlock) row(seq events.Seq, stored events.Time, node events.NodeID, epoch int64, kind string, first, count uint64, note string, since, until events.Time, data []byte) {
	b.bSeq.Append(uint64(seq))
	b.bStored.AppendRaw(proto.DateTime64(stored))
	b.bNode.Append(string(node))
	b.bEpoch.Append(epoch)
	b.bKind.Append(kind)
	b.bFirst.Append(first)
	b.bCount.Append(count)
	b.bNote.Append(note)
	b.bSince.AppendRaw(proto.DateTime64(since))
	b.bUntil.AppendRaw(proto.DateTime64(until))
	b.bData.AppendBytes(data)
}
