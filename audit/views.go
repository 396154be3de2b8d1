package audit

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

// UseView is one use as the door shows it. Subject to the reader's scope only:
// whoever may read a tenant's record may see all of it.
type UseView struct {
	ID       string            `json:"id"` // "<node>/<epoch>/<n>"
	Time     events.Time       `json:"time"`
	Node     events.NodeID     `json:"node"`
	Epoch    int64             `json:"epoch"`
	N        uint64            `json:"n"`
	Keyspace events.KeyspaceID `json:"keyspace,omitzero"` // absent when the request named none and the key is unknown
	Tenant   events.TenantID   `json:"tenant,omitzero"`   // absent when the key is unknown
	KeyID    events.KeyID      `json:"key_id,omitzero"`   // absent when the key is unknown
	Allowed  bool              `json:"allowed"`
	Reason   events.Reason     `json:"reason"`
	Scope    string            `json:"scope,omitzero"`
	Resource *events.Resource  `json:"resource,omitzero"`
	IP       netip.Addr        `json:"ip,omitzero"`
	Cost     uint32            `json:"cost"`
	Position events.Position   `json:"position"` // of the lifecycle log, at which it was decided
	Seq      events.Seq        `json:"seq"`      // of its message in the use stream
}

func viewUse(u *UseRow, log events.LogID) UseView {
	v := UseView{
		ID: u.ID.String(), Time: u.Time, Node: u.ID.Node, Epoch: u.ID.Epoch, N: u.ID.N,
		Keyspace: u.Keyspace, Tenant: u.Tenant, KeyID: u.Key, Allowed: u.Reason.Allowed(), Reason: u.Reason,
		Scope: u.Scope, IP: u.IP, Cost: u.Cost, Position: events.Position{Log: log, Seq: u.Use.Seq}, Seq: u.Seq,
	}
	if !u.Resource.IsZero() {
		r := u.Resource
		v.Resource = &r
	}
	return v
}

// UsageView is one count as the door shows it.
type UsageView struct {
	At      events.Time   `json:"at"` // start of the hour or day, UTC
	Allowed bool          `json:"allowed"`
	Reason  events.Reason `json:"reason"`
	Count   uint64        `json:"count"`
}

// The columns of the CSV exports. A value stands as it is: a cell that starts with
// = + - or @ is not changed, because a copy of the record is exact. Open it in a
// spreadsheet as text.
var (
	eventHeader = strings.Fields("seq id type time stored keyspace tenant kind aggregate_id key_id rev actor_kind actor_id ip user_agent request_id reason source command prev hash data")
	useHeader   = strings.Fields("id time stored node epoch n keyspace tenant key_id allowed reason scope resource_kind resource_id ip cost decided_seq seq")
)

func eventCells(r *events.Recorded) ([]string, error) {
	data, err := json.Marshal(r.Data, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	prev := ""
	if !r.Prev.IsZero() {
		prev = r.Prev.String()
	}
	return []string{
		text(uint64(r.Seq)), r.ID.String(), string(r.Type()), r.Time.String(), r.Stored.String(), string(r.Aggregate.Keyspace),
		string(r.Aggregate.Tenant), string(r.Aggregate.Kind), r.Aggregate.ID, r.Key().String(), text(r.Rev), string(r.Actor.Kind), r.Actor.ID,
		addrText(r.IP), r.UserAgent, r.RequestID, r.Reason, r.Source, r.Command, prev, r.Hash.String(), string(data),
	}, nil
}

func useCells(u *UseRow) []string {
	return []string{
		u.ID.String(), u.Time.String(), u.Stored.String(), string(u.ID.Node), strconv.FormatInt(u.ID.Epoch, 10), text(u.ID.N),
		string(u.Keyspace), string(u.Tenant), u.Key.String(), strconv.FormatBool(u.Reason.Allowed()), u.Reason.String(), u.Scope,
		u.Resource.Kind, u.Resource.ID, addrText(u.IP), text(uint64(u.Cost)), text(uint64(u.Use.Seq)), text(uint64(u.Seq)),
	}
}

func text(n uint64) string { return strconv.FormatUint(n, 10) }

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// list is api.List with how far the copy was.
type list struct {
	Data       any         `json:"data"`
	NextCursor *string     `json:"next_cursor"`
	Watermark  Watermark   `json:"watermark"`
	LastUsedAt events.Time `json:"last_used_at,omitzero"` // usage of one key only
}
