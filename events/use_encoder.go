package events

import (
	"fmt"
	"net/netip"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keytrail/keytrail/events/keyspace"
)

// useEncoder holds the tables and columns of one batch while it is built. It is
// pooled because its maps are what encoding would otherwise spend its time on.
type useEncoder struct {
	keyspaces map[KeyspaceID]uint64 // these map an entry to its place in the table
	tenants   map[TenantID]uint64
	scopes    map[string]uint64
	kinds     map[string]uint64
	holders   map[holder]uint64
	resources map[Resource]uint64
	addrs     map[netip.Addr]uint64
	endpoints map[string]uint64
	columns   [numFields][]byte // those of tableFields with their tags
	time, seq int64             // of the row before
	row       uint64            // the next row
	request   uint64            // the row after the last one that has a request
}

var encoders = sync.Pool{New: func() any {
	return &useEncoder{
		keyspaces: map[KeyspaceID]uint64{},
		tenants:   map[TenantID]uint64{},
		scopes:    map[string]uint64{},
		kinds:     map[string]uint64{},
		holders:   map[holder]uint64{},
		resources: map[Resource]uint64{},
		addrs:     map[netip.Addr]uint64{},
		endpoints: map[string]uint64{},
	}
}}

func (e *useEncoder) release() {
	clear(e.keyspaces)
	clear(e.tenants)
	clear(e.scopes)
	clear(e.kinds)
	clear(e.holders)
	clear(e.resources)
	clear(e.addrs)
	clear(e.endpoints)
	for i := range e.columns {
		e.columns[i] = e.columns[i][:0]
	}
	e.time, e.seq, e.row, e.request = 0, 0, 0, 0
	encoders.Put(e)
}

// The references of the published shape.
const (
	refNone  = 0
	refNext  = 1
	refFirst = 2 // and up: entry 0, 1, ...

	addrNext4 = 1
	addrNext6 = 2
	addrFirst = 3
)

// ref returns the reference to v: to the next entry, which add must make, when v
// is new to the table.
func ref[T comparable](table map[T]uint64, v T, add func(T) error) (uint64, error) {
	var none T
	if v == none {
		return refNone, nil
	}
	if i, ok := table[v]; ok {
		return refFirst + i, nil
	}
	if err := add(v); err != nil {
		return 0, err
	}
	table[v] = uint64(len(table))
	return refNext, nil
}

// add appends one row. Entries of tables are checked when they are first seen.
func (e *useEncoder) add(u *Use) error {
	if err := checkRow(u); err != nil {
		return err
	}
	holder, err := ref(e.holders, holder{u.Key, u.Keyspace, u.Tenant}, e.addHolder)
	if err != nil {
		return err
	}
	scope, err := ref(e.scopes, u.Scope, e.addScope)
	if err != nil {
		return err
	}
	resource, err := ref(e.resources, u.Resource, e.addResource)
	if err != nil {
		return err
	}
	addr, err := e.addr(u.IP)
	if err != nil {
		return err
	}
	e.put(fTime, protowire.EncodeZigZag(int64(u.Time)-e.time))
	e.put(fHolder, holder)
	e.put(fReason, uint64(u.Reason))
	e.put(fScope, scope)
	e.put(fResource, resource)
	e.put(fAddr, addr)
	e.put(fExtraCost, uint64(u.Cost)-1)
	e.put(fSeq, protowire.EncodeZigZag(int64(u.Seq)-e.seq))
	e.time, e.seq = int64(u.Time), int64(u.Seq)
	e.row++
	if u.Endpoint == "" && u.RequestID.IsZero() {
		return nil
	}
	return e.addRequest(u)
}

// addRequest says of the row just added which request it belongs to. Few rows
// have one, so the rows are named, and the others cost nothing.
func (e *useEncoder) addRequest(u *Use) error {
	endpoint, err := ref(e.endpoints, u.Endpoint, func(s string) error {
		e.str(fEndpoints, s)
		return ValidEndpoint(s)
	})
	e.put(fRequestRow, e.row-1-e.request)
	e.put(fRequestEndpoint, endpoint)
	e.columns[fRequestID] = append(e.columns[fRequestID], u.RequestID[:]...)
	e.request = e.row
	return err
}

// checkRow checks what stands in the row itself, not in a table.
func checkRow(u *Use) error {
	if u.Time <= 0 || u.Time > maxTime {
		return u.Time.Validate()
	}
	if u.Reason == ReasonNone || int(u.Reason) >= len(reasonNames) {
		return fmt.Errorf("reason %d: want 1 to %d", u.Reason, len(reasonNames)-1)
	}
	if u.Cost == 0 {
		return fmt.Errorf("cost: want at least 1")
	}
	return nil
}

func (e *useEncoder) put(f protowire.Number, v uint64) {
	e.columns[f] = protowire.AppendVarint(e.columns[f], v)
}

func (e *useEncoder) str(f protowire.Number, s string) {
	e.columns[f] = protowire.AppendString(protowire.AppendTag(e.columns[f], f, protowire.BytesType), s)
}

// addHolder insists on a key with keyspace and tenant, or a keyspace alone.
func (e *useEncoder) addHolder(h holder) error {
	if h.keyspace == "" {
		return h.keyspace.Validate()
	}
	if h.key.IsZero() && h.tenant != "" {
		return fmt.Errorf("tenant: want none where there is no key")
	}
	if !h.key.IsZero() && h.tenant == "" {
		return h.tenant.Validate()
	}
	keyspace, err := ref(e.keyspaces, h.keyspace, e.addKeyspace)
	if err != nil {
		return err
	}
	tenant, err := ref(e.tenants, h.tenant, e.addTenant)
	if err != nil {
		return err
	}
	e.columns[fHolderKey] = append(e.columns[fHolderKey], h.key[:]...)
	e.put(fHolderKeyspace, keyspace)
	e.put(fHolderTenant, tenant)
	return nil
}

func (e *useEncoder) addKeyspace(k KeyspaceID) error {
	e.str(fKeyspaces, string(k))
	return k.Validate()
}

func (e *useEncoder) addTenant(t TenantID) error {
	e.str(fTenants, string(t))
	return t.Validate()
}

func (e *useEncoder) addScope(s string) error {
	e.str(fScopes, s)
	return keyspace.ValidScope(s)
}

func (e *useEncoder) addResource(r Resource) error {
	if err := r.Validate(); err != nil {
		return err
	}
	kind, _ := ref(e.kinds, r.Kind, func(k string) error { e.str(fKinds, k); return nil })
	e.put(fResourceKind, kind)
	e.str(fResourceID, r.ID)
	return nil
}

func (e *useEncoder) addr(a netip.Addr) (uint64, error) {
	if !a.IsValid() {
		return refNone, nil
	}
	if i, ok := e.addrs[a]; ok {
		return addrFirst + i, nil
	}
	if a.Zone() != "" {
		return 0, fmt.Errorf("ip: want an address without a zone")
	}
	e.addrs[a] = uint64(len(e.addrs))
	if a.Is4() {
		b := a.As4()
		e.columns[fAddr4] = append(e.columns[fAddr4], b[:]...)
		return addrNext4, nil
	}
	b := a.As16()
	e.columns[fAddr6] = append(e.columns[fAddr6], b[:]...)
	return addrNext6, nil
}

// finish assembles the message; zero scalars and empty columns stay out, as
// proto3 has it.
func (e *useEncoder) finish(b *UseBatch) []byte {
	size := 128 + len(b.Node) + len(b.Note)
	for _, c := range e.columns {
		size += len(c) + 8
	}
	out := make([]byte, 0, size)
	bytes := func(f protowire.Number, v []byte) {
		if len(v) > 0 {
			out = protowire.AppendBytes(protowire.AppendTag(out, f, protowire.BytesType), v)
		}
	}
	number := func(f protowire.Number, v uint64) {
		if v != 0 {
			out = protowire.AppendVarint(protowire.AppendTag(out, f, protowire.VarintType), v)
		}
	}
	bytes(fLog, b.Log[:])
	bytes(fNode, []byte(b.Node))
	number(fEpoch, uint64(b.Epoch))
	number(fKind, uint64(b.Kind))
	number(fFirst, b.First)
	number(fCount, b.Count)
	bytes(fNote, []byte(b.Note))
	for f := fKeyspaces; f < numFields; f++ {
		switch c := e.columns[f]; {
		case tableFields&(1<<f) != 0:
			out = append(out, c...)
		case (f >= fTime && f <= fSeq || f == fRequestEndpoint || f == fBlockBits || f == fSpan) && allZero(c): // an absent column
		default:
			bytes(f, c)
		}
	}
	number(fSince, uint64(b.Since))
	number(fUntil, uint64(b.Until))
	return out
}

func allZero(c []byte) bool {
	for _, x := range c {
		if x != 0 {
			return false
		}
	}
	return true
}
