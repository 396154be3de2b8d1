package api

import (
	"net/netip"

	"github.com/keytrail/keytrail/events"
)

// EventView is one lifecycle event as every endpoint shows it: a key's history and
// the trail print the same shape.
type EventView struct {
	ID        events.EventID    `json:"id"`
	Type      events.Type       `json:"type"`
	Time      events.Time       `json:"time"`
	Keyspace  events.KeyspaceID `json:"keyspace"`
	Tenant    events.TenantID   `json:"tenant,omitzero"` // absent on events of the keyspace itself
	Subject   string            `json:"subject"`         // "<keyspace>/<tenant>/<kind>/<id>"
	KeyID     events.KeyID      `json:"key_id,omitzero"` // absent on events that are not about a key
	Rev       uint64            `json:"rev"`
	Seq       events.Seq        `json:"seq"`
	Actor     ActorView         `json:"actor"`
	IP        netip.Addr        `json:"ip,omitzero"`
	UserAgent string            `json:"user_agent,omitzero"`
	RequestID string            `json:"request_id,omitzero"`
	Reason    string            `json:"reason,omitzero"`
	Data      events.Data       `json:"data"`
}

// ActorView is an actor as the endpoints show it.
type ActorView struct {
	events.Actor
	Name string `json:"name,omitzero"` // of the key, now; absent for components, and where the reader may not know of the key
}

// ViewEvent returns r as the endpoints show it.
func ViewEvent(r *events.Recorded) EventView {
	tenant := r.Aggregate.Tenant
	if tenant == events.NoTenant {
		tenant = ""
	}
	return EventView{
		ID: r.ID, Type: r.Type(), Time: r.Time,
		Keyspace: r.Aggregate.Keyspace, Tenant: tenant, Subject: r.Aggregate.String(), KeyID: r.Key(),
		Rev: r.Rev, Seq: r.Seq,
		Actor: ActorView{Actor: r.Actor}, IP: r.IP, UserAgent: r.UserAgent, RequestID: r.RequestID, Reason: r.Reason,
		Data: r.Data,
	}
}
