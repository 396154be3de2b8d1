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

// validate insists on a key with keyspace and tenant, or a keyspace alone.
func (h *holder) validate() error {
	if err := h.keyspace.Validate(); err != nil {
		return err
	}
	if h.key.IsZero() && h.tenant != "" {
		return fmt.Errorf("tenant: want none where there is no key")
	}
	if h.key.IsZero() {
		return nil
	}
	return h.tenant.Validate()
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

func (e *useEncoder) addHolder(h holder) error {
	if err := h.validate(); err != nil {
		return err
	}
	keyspace, _ := ref(e.keyspaces, h.keyspace, func(k KeyspaceID) error { e.str(fKeyspaces, string(k)); return nil })
	tenant, _ := ref(e.tenants, h.tenant, func(t TenantID) error { e.str(fTenants, string(t)); return nil })
	e.columns[fHolderKey] = append(e.columns[fHolderKey], h.key[:]...)
	e.put(fHolderKeyspace, keyspace)
	e.put(fHolderTenant, tenant)
	return nil
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

// DecodeUses reads one message of the use stream. It accepts what the published
// shape describes and nothing else: an unknown or repeated field, columns of
// different lengths, a reference past its table, an id, reason or text out of
// its grammar is an error that names the place. What it allocates is bounded by
// MaxUsesPerBatch and a small multiple of len(data). The result shares no memory
// with data.
func DecodeUses(data []byte) (UseBatch, error) {
	if len(data) > MaxUseBatchBytes {
		return UseBatch{}, fmt.Errorf("use batch: %d bytes: want at most %d", len(data), MaxUseBatchBytes)
	}
	var d useDecoder
	if err := d.fields(data); err != nil {
		return UseBatch{}, fmt.Errorf("use batch: %w", err)
	}
	if err := d.tables(); err != nil {
		return UseBatch{}, fmt.Errorf("use batch: %w", err)
	}
	if err := d.rows(); err != nil {
		return UseBatch{}, fmt.Errorf("use batch: %w", err)
	}
	if err := d.batch.validate(); err != nil {
		return UseBatch{}, fmt.Errorf("use batch: %w", err)
	}
	return d.batch, nil
}

// useDecoder is one pass over the fields, then the tables, then the rows.
type useDecoder struct {
	batch     UseBatch
	seen      uint32 // bit f: field f has been read
	columns   [numFields]column
	keyspaces table[string]
	tenants   table[string]
	scopes    table[string]
	kinds     table[string]
	ids       []string // of resources
	holders   table[holder]
	resources table[Resource]
	addrs     []netip.Addr // those referred to so far
}

func (d *useDecoder) fields(data []byte) error {
	for len(data) > 0 {
		f, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if f >= numFields || useFieldNames[f] == "" {
			return fmt.Errorf("field %d is unknown to this release of Keytrail", f)
		}
		name := useFieldNames[f]
		if d.seen&^tableFields&(1<<f) != 0 {
			return fmt.Errorf("field %s stands twice", name)
		}
		d.seen |= 1 << f
		want := protowire.BytesType
		if f >= fEpoch && f <= fCount {
			want = protowire.VarintType
		}
		if typ != want {
			return fmt.Errorf("field %s: wire type %d: want %d", name, typ, want)
		}
		var number uint64
		var v []byte
		if typ == protowire.VarintType {
			number, n = protowire.ConsumeVarint(data)
		} else {
			v, n = protowire.ConsumeBytes(data)
		}
		if n < 0 {
			return fmt.Errorf("field %s: %w", name, protowire.ParseError(n))
		}
		data = data[n:]
		if err := d.field(f, number, v); err != nil {
			return fmt.Errorf("field %s: %w", name, err)
		}
	}
	return nil
}

// field takes one field. Names are checked here, once, and not in every row.
func (d *useDecoder) field(f protowire.Number, number uint64, v []byte) error {
	b := &d.batch
	switch f {
	case fLog:
		if len(v) != len(b.Log) {
			return fmt.Errorf("%d bytes: want %d", len(v), len(b.Log))
		}
		b.Log = LogID(v)
	case fNode:
		b.Node = NodeID(v)
	case fEpoch:
		b.Epoch = int64(number)
	case fKind:
		if number > uint64(BatchGap) {
			return fmt.Errorf("%d: want 1 to 4", number)
		}
		b.Kind = BatchKind(number)
	case fFirst:
		b.First = number
	case fCount:
		b.Count = number
	case fNote:
		b.Note = string(v)
	case fKeyspaces:
		d.keyspaces.entries = append(d.keyspaces.entries, string(v))
		return KeyspaceID(v).Validate()
	case fTenants:
		d.tenants.entries = append(d.tenants.entries, string(v))
		return TenantID(v).Validate()
	case fScopes:
		d.scopes.entries = append(d.scopes.entries, string(v))
		return ValidScope(string(v))
	case fKinds:
		d.kinds.entries = append(d.kinds.entries, string(v))
		return Resource{string(v), "x"}.Validate()
	case fResourceID:
		d.ids = append(d.ids, string(v))
		return Resource{"x", string(v)}.Validate()
	default:
		d.columns[f].b = v
	}
	return nil
}

// tables builds the holders and the resources.
func (d *useDecoder) tables() error {
	const w = len(KeyID{})
	keys, spaces, tenants := d.columns[fHolderKey].b, &d.columns[fHolderKeyspace], &d.columns[fHolderTenant]
	n := len(keys) / w
	if len(keys)%w != 0 || !spaces.has(n) || !tenants.has(n) {
		return fmt.Errorf("the holder columns differ in length")
	}
	d.holders.entries = make([]holder, n)
	for i := range d.holders.entries {
		h := &d.holders.entries[i]
		space, ok := d.keyspaces.at(spaces.next())
		tenant, ok2 := d.tenants.at(tenants.next())
		*h = holder{KeyID(keys[i*w:]), KeyspaceID(space), TenantID(tenant)}
		if !ok || !ok2 || space == "" || h.key.IsZero() != (tenant == "") {
			return fmt.Errorf("holder %d: want a key with keyspace and tenant, or a keyspace alone", i)
		}
	}
	kinds := &d.columns[fResourceKind]
	if !kinds.has(len(d.ids)) {
		return fmt.Errorf("the resource columns differ in length")
	}
	d.resources.entries = make([]Resource, len(d.ids))
	for i, id := range d.ids {
		kind, ok := d.kinds.at(kinds.next())
		if !ok || kind == "" {
			return fmt.Errorf("resource %d: want a kind", i)
		}
		d.resources.entries[i] = Resource{kind, id}
	}
	if len(d.columns[fAddr4].b)%4 != 0 || len(d.columns[fAddr6].b)%16 != 0 {
		return fmt.Errorf("addr4, addr6: want 4 and 16 bytes for each address")
	}
	return nil
}

func (d *useDecoder) rows() error {
	c := &d.columns
	n := c[fTime].len()
	if n > MaxUsesPerBatch {
		return fmt.Errorf("more than %d uses", MaxUsesPerBatch)
	}
	for f := fTime; f <= fSeq; f++ {
		if d.seen&(1<<f) != 0 && !c[f].has(n) {
			return fmt.Errorf("the columns time and %s differ in length", useFieldNames[f])
		}
	}
	if n > 0 {
		d.batch.Uses = make([]Use, n)
	}
	var t, seq int64
	for i := range d.batch.Uses {
		t += protowire.DecodeZigZag(c[fTime].next())
		seq += protowire.DecodeZigZag(c[fSeq].next())
		h, ok1 := d.holders.at(c[fHolder].next())
		scope, ok2 := d.scopes.at(c[fScope].next())
		resource, ok3 := d.resources.at(c[fResource].next())
		ip, ok4 := d.addr(c[fAddr].next())
		if !ok1 || !ok2 || !ok3 || !ok4 {
			return fmt.Errorf("use %d: a reference past the end of its table", i)
		}
		reason, cost := c[fReason].next(), c[fExtraCost].next()
		if reason >= uint64(len(reasonNames)) || cost >= 1<<32-1 {
			return fmt.Errorf("use %d: reason or cost out of range", i)
		}
		u := &d.batch.Uses[i]
		*u = Use{Time(t), h.keyspace, h.tenant, h.key, Reason(reason), scope, resource, ip, uint32(cost) + 1, Seq(seq)}
		if err := checkRow(u); err != nil {
			return fmt.Errorf("use %d: %w", i, err)
		}
	}
	if c[fSeq].bad { // a bad number of any other column has shown itself
		return fmt.Errorf("the column seq holds a number above 64 bits")
	}
	if !d.keyspaces.used() || !d.tenants.used() || !d.scopes.used() || !d.kinds.used() || !d.holders.used() ||
		!d.resources.used() || len(c[fAddr4].b)+len(c[fAddr6].b) > 0 {
		return fmt.Errorf("a table holds entries that no row refers to")
	}
	return nil
}

// addr returns the address that a reference means; ok is false for none such.
func (d *useDecoder) addr(ref uint64) (a netip.Addr, ok bool) {
	switch four, six := &d.columns[fAddr4].b, &d.columns[fAddr6].b; {
	case ref == refNone:
		return a, true
	case ref == addrNext4 && len(*four) > 0:
		a, *four = netip.AddrFrom4([4]byte(*four)), (*four)[4:]
	case ref == addrNext6 && len(*six) > 0:
		a, *six = netip.AddrFrom16([16]byte(*six)), (*six)[16:]
	case ref >= addrFirst && ref-addrFirst < uint64(len(d.addrs)):
		return d.addrs[ref-addrFirst], true
	default:
		return a, false
	}
	d.addrs = append(d.addrs, a)
	return a, true
}

// table resolves the references of one column.
type table[T any] struct {
	entries []T
	next    uint64 // the first entry that has not been referred to
}

// at returns the entry that ref means, the zero value for none; ok is false when
// there is no such entry.
func (t *table[T]) at(ref uint64) (v T, ok bool) {
	switch {
	case ref == refNone:
		return v, true
	case ref == refNext && t.next < uint64(len(t.entries)):
		t.next++
		return t.entries[t.next-1], true
	case ref >= refFirst && ref-refFirst < t.next:
		return t.entries[ref-refFirst], true
	}
	return v, false
}

func (t *table[T]) used() bool { return t.next == uint64(len(t.entries)) }

// column is a cursor over packed varints.
type column struct {
	b   []byte
	bad bool // a value was no 64-bit number
}

// len returns the number of values: each ends in a byte without the high bit.
func (c *column) len() (n int) {
	for _, x := range c.b {
		if x < 0x80 {
			n++
		}
	}
	return n
}

// has reports whether the column holds n whole values.
func (c *column) has(n int) bool {
	return c.len() == n && (len(c.b) == 0 || c.b[len(c.b)-1] < 0x80)
}

// next returns the next value, 0 for an absent column. For a value that is no
// 64-bit number it returns the largest, which is no reference, reason, cost or step in time.
func (c *column) next() uint64 {
	switch {
	case len(c.b) == 0:
		return 0
	case c.b[0] < 0x80:
		v := c.b[0]
		c.b = c.b[1:]
		return uint64(v)
	}
	v, n := protowire.ConsumeVarint(c.b)
	if n < 0 {
		c.b, c.bad = nil, true
		return 1<<64 - 1
	}
	c.b = c.b[n:]
	return v
}
