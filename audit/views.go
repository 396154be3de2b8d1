package audit

import (
	"net/netip"

	"github.com/keytrail/keytrail/events"
)

// UseView is one use as the endpoint shows it. Subject to the reader's scope only:
// whoever may read a tenant's record may see all of it.
type UseView struct {
	ID        string            `json:"id"` // "<node>/<epoch>/<n>"
	Time      events.Time       `json:"time"`
	Node      events.NodeID     `json:"node"`
	Epoch     int64             `json:"epoch"`
	N         uint64            `json:"n"`
	Keyspace  events.KeyspaceID `json:"keyspace,omitzero"` // absent when the request named none and the key is unknown
	Tenant    events.TenantID   `json:"tenant,omitzero"`   // absent when the key is unknown
	KeyID     events.KeyID      `json:"key_id,omitzero"`   // absent when the key is unknown
	Allowed   bool              `json:"allowed"`
	Reason    events.Reason     `json:"reason"`
	Scope     string            `json:"scope,omitzero"`
	Resource  *events.Resource  `json:"resource,omitzero"`
	IP        netip.Addr        `json:"ip,omitzero"`
	Cost      uint32            `json:"cost"`
	Endpoint  string            `json:"endpoint,omitzero"`   // of Keytrail's own, that an operator called
	RequestID events.RequestID  `json:"request_id,omitzero"` // of operators' calls and of denied uses
	Decided   events.Seq        `json:"decided_seq"`         // the last event of the lifecycle log that the node had applied
	Seq       events.Seq        `json:"seq"`                 // of its message in the use stream
}

func viewUse(u *UseRow) UseView {
	v := UseView{
		ID: u.ID.String(), Time: u.Time, Node: u.ID.Node, Epoch: u.ID.Epoch, N: u.ID.N,
		Keyspace: u.Keyspace, Tenant: u.Tenant, KeyID: u.Key, Allowed: u.Reason.Allowed(), Reason: u.Reason,
		Scope: u.Scope, IP: u.IP, Cost: u.Cost, Endpoint: u.Endpoint, RequestID: u.RequestID, Decided: u.Use.Seq, Seq: u.Seq,
	}
	if !u.Resource.IsZero() {
		r := u.Resource
		v.Resource = &r
	}
	return v
}

// UsageView is one count as the endpoint shows it.
type UsageView struct {
	At      events.Time   `json:"at"` // start of the hour or day, UTC
	Allowed bool          `json:"allowed"`
	Reason  events.Reason `json:"reason"`
	Count   uint64        `json:"count"`
}

// BlockView is one block as the endpoint shows it.
type BlockView struct {
	Block    string            `json:"block"`             // a network; "unknown" = the address is not known; "other" = not told apart
	Keyspace events.KeyspaceID `json:"keyspace,omitzero"` // absent when the requests named none
	Reason   events.Reason     `json:"reason"`
	Count    uint64            `json:"count"`
	Recorded uint64            `json:"recorded"` // those of them that GET /v1/audit/uses shows
	First    events.Time       `json:"first"`
	Last     events.Time       `json:"last"`
}

func viewBlock(b *Block) BlockView {
	v := BlockView{Block: b.Block.String(), Keyspace: b.Keyspace, Reason: b.Reason, Count: b.Count, Recorded: b.Recorded, First: b.First, Last: b.Last}
	switch b.Block {
	case netip.Prefix{}:
		v.Block = unknownIP
	case events.AnyBlock():
		v.Block = "other"
	}
	return v
}

// list is api.List with how far the copy was.
type list struct {
	Data       any          `json:"data"`
	NextCursor *string      `json:"next_cursor"`
	Watermark  Watermark    `json:"watermark"`
	Gaps       *events.Gaps `json:"gaps,omitzero"`         // of answers about uses: what the ledger lacks in the time asked for
	Notes      []string     `json:"notes,omitempty"`       // sentences for people, when there is something to know about the answer
	LastUsedAt events.Time  `json:"last_used_at,omitzero"` // usage of one key only
	rows       int
}

// note adds a sentence, unless it is empty.
func (l *list) note(s string, err error) error {
	if s != "" {
		l.Notes = append(l.Notes, s)
	}
	return err
}
