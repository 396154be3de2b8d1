package events

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keytrail/keytrail/events/keyspace"
)

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
	if err := d.requests(); err != nil {
		return UseBatch{}, fmt.Errorf("use batch: %w", err)
	}
	if err := d.tallies(); err != nil {
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
	seen      uint64 // bit f: field f has been read
	columns   [numFields]column
	keyspaces table[string]
	tenants   table[string]
	scopes    table[string]
	kinds     table[string]
	ids       []string // of resources
	holders   table[holder]
	resources table[Resource]
	addrs     []netip.Addr // those referred to so far
	endpoints table[string]
}

// maxLaterField is the last field number that a later release may take; above it
// bytes are no use batch.
const maxLaterField = 255

func (d *useDecoder) fields(data []byte) error {
	for len(data) > 0 {
		f, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if f >= numFields || useFieldNames[f] == "" {
			if f > maxLaterField || protowire.ConsumeFieldValue(f, typ, data) < 0 {
				return fmt.Errorf("field %d is none of a use batch", f)
			}
			return &NewerError{What: fmt.Sprintf("field %d", f)}
		}
		name := useFieldNames[f]
		if d.seen&^tableFields&(1<<f) != 0 {
			return fmt.Errorf("field %s stands twice", name)
		}
		d.seen |= 1 << f
		want := protowire.BytesType
		if f >= fEpoch && f <= fCount || f == fSince || f == fUntil {
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
		if number > uint64(BatchSuppressed) {
			return &NewerError{What: fmt.Sprintf("kind %d of a batch", number)}
		}
		b.Kind = BatchKind(number)
	case fFirst:
		b.First = number
	case fCount:
		b.Count = number
	case fNote:
		b.Note = string(v)
	case fSince:
		b.Since = Time(number)
	case fUntil:
		b.Until = Time(number)
	case fKeyspaces:
		d.keyspaces.entries = append(d.keyspaces.entries, string(v))
		return KeyspaceID(v).Validate()
	case fTenants:
		d.tenants.entries = append(d.tenants.entries, string(v))
		return TenantID(v).Validate()
	case fScopes:
		d.scopes.entries = append(d.scopes.entries, string(v))
		return keyspace.ValidScope(string(v))
	case fKinds:
		d.kinds.entries = append(d.kinds.entries, string(v))
		return Resource{string(v), "x"}.Validate()
	case fResourceID:
		d.ids = append(d.ids, string(v))
		return Resource{"x", string(v)}.Validate()
	case fEndpoints:
		d.endpoints.entries = append(d.endpoints.entries, string(v))
		return ValidEndpoint(string(v))
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
		if cost >= 1<<32-1 {
			return fmt.Errorf("use %d: cost out of range", i)
		}
		if reason >= uint64(len(reasonNames)) {
			return &NewerError{What: fmt.Sprintf("reason %d of a use", reason)}
		}
		u := &d.batch.Uses[i]
		*u = Use{Time: Time(t), Keyspace: h.keyspace, Tenant: h.tenant, Key: h.key, Reason: Reason(reason),
			Scope: scope, Resource: resource, IP: ip, Cost: uint32(cost) + 1, Seq: Seq(seq)}
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

// requests tells the rows that have one which request they belong to.
func (d *useDecoder) requests() error {
	const w = len(RequestID{})
	ids, rows, endpoints := d.columns[fRequestID].b, &d.columns[fRequestRow], &d.columns[fRequestEndpoint]
	n := len(ids) / w
	if len(ids)%w != 0 || !rows.has(n) || d.seen&(1<<fRequestEndpoint) != 0 && !endpoints.has(n) {
		return fmt.Errorf("the request columns differ in length")
	}
	row := uint64(0)
	for i := range n {
		gap := rows.next()
		if gap >= uint64(len(d.batch.Uses)) || row+gap >= uint64(len(d.batch.Uses)) {
			return fmt.Errorf("request %d: no such row", i)
		}
		u := &d.batch.Uses[row+gap]
		row += gap + 1
		endpoint, ok := d.endpoints.at(endpoints.next())
		u.Endpoint, u.RequestID = endpoint, RequestID(ids[i*w:])
		if !ok || u.Endpoint == "" && u.RequestID.IsZero() {
			return fmt.Errorf("request %d: want an id or an endpoint", i)
		}
	}
	if !d.endpoints.used() {
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
