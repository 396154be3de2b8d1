package events

import (
	"fmt"
	"net/netip"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
)

// The bounds of one message of the use stream.
const (
	MaxUseBatchBytes = 1 << 20 // the stream's largest message
	MaxUsesPerBatch  = 65_536
)

// The fields of keytrail.v1.UseBatch. The published shape, with what each means,
// is schemas/proto/use_batch.v1.proto; a test reads either with the other.
const (
	fLog            protowire.Number = 1
	fNode           protowire.Number = 2
	fEpoch          protowire.Number = 3
	fKind           protowire.Number = 4
	fFirst          protowire.Number = 5
	fCount          protowire.Number = 6
	fNote           protowire.Number = 7
	fKeyspaces      protowire.Number = 8
	fTenants        protowire.Number = 9
	fScopes         protowire.Number = 10
	fKinds          protowire.Number = 11
	fHolderKey      protowire.Number = 12
	fHolderKeyspace protowire.Number = 13
	fHolderTenant   protowire.Number = 14
	fResourceID     protowire.Number = 15
	fResourceKind   protowire.Number = 16
	fAddr4          protowire.Number = 17
	fAddr6          protowire.Number = 18
	fTime           protowire.Number = 20 // fTime..fSeq: the uses
	fHolder         protowire.Number = 21
	fReason         protowire.Number = 22
	fScope          protowire.Number = 23
	fResource       protowire.Number = 24
	fAddr           protowire.Number = 25
	fExtraCost      protowire.Number = 26
	fSeq            protowire.Number = 27
	numFields                        = 28
)

var useFieldNames = [numFields]string{"", "log", "node", "epoch", "kind", "first", "count", "note",
	"keyspaces", "tenants", "scopes", "kinds", "holder_key", "holder_keyspace", "holder_tenant",
	"resource_id", "resource_kind", "addr4", "addr6", "",
	"time", "holder", "reason", "scope", "resource", "addr", "extra_cost", "seq"}

// tableFields are the fields that stand once per entry instead of once.
const tableFields = 1<<fKeyspaces | 1<<fTenants | 1<<fScopes | 1<<fKinds | 1<<fResourceID

// holder is one entry of the holder table: whose key was presented.
type holder struct {
	key      KeyID
	keyspace KeyspaceID
	tenant   TenantID
}

// validate checks all of the batch but its uses.
func (b *UseBatch) validate() error {
	if b.Log.IsZero() {
		return fmt.Errorf("log: want the id of a log")
	}
	if err := b.Node.Validate(); err != nil {
		return err
	}
	if b.Epoch <= 0 {
		return fmt.Errorf("epoch: want microseconds since the Unix epoch")
	}
	if b.Kind < BatchUses || b.Kind > BatchGap {
		return fmt.Errorf("kind %d: want 1 to 4", b.Kind)
	}
	if b.Kind == BatchOpen && b.First > 1 || b.Kind != BatchOpen && b.First == 0 || b.First+b.Len() < b.First {
		return fmt.Errorf("first %d: want a number of the epoch, counted from 1", b.First)
	}
	if b.Kind != BatchGap && (b.Count != 0 || b.Note != "") {
		return fmt.Errorf("count, note: want them on gaps only")
	}
	if err := CheckText(b.Note, 200); err != nil {
		return fmt.Errorf("note: %w", err)
	}
	if n := len(b.Uses); (n > 0) != (b.Kind == BatchUses) || n > MaxUsesPerBatch {
		return fmt.Errorf("%d uses: want 1 to %d on a batch of uses, none on others", n, MaxUsesPerBatch)
	}
	return nil
}

// EncodeUses validates b and returns its wire form: a columnar protobuf message
// of at most MaxUseBatchBytes.
func EncodeUses(b *UseBatch) ([]byte, error) {
	if err := b.validate(); err != nil {
		return nil, fmt.Errorf("use batch: %w", err)
	}
	e := encoders.Get().(*useEncoder)
	defer e.release()
	for i := range b.Uses {
		if err := e.add(&b.Uses[i]); err != nil {
			return nil, fmt.Errorf("use batch: use %d: %w", i, err)
		}
	}
	out := e.finish(b)
	if len(out) > MaxUseBatchBytes {
		return nil, fmt.Errorf("use batch: %d bytes: want at most %d; send fewer uses at once", len(out), MaxUseBatchBytes)
	}
	return out, nil
}

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
	columns   [numFields][]byte // those of tableFields with their tags
	time, seq int64             // of the row before
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
	for i := range e.columns {
		e.columns[i] = e.columns[i][:0]
	}
	e.time, e.seq = 0, 0
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
	return nil
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
	return ValidScope(s)
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
		case f >= fTime && allZero(c): // an absent column
		default:
			bytes(f, c)
		}
	}
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
