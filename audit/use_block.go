package audit

import (
	"net/netip"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
)

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
