package audit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Kind is what may be asked for.
type Kind string

// The kinds.
const (
	KindEvents Kind = "events" // the trail
	KindUses   Kind = "uses"   // the ledger
	KindUsage  Kind = "usage"  // counts of the ledger
	KindBlocks Kind = "blocks" // where uses of unknown keys came from
)

// fields are the filters of each kind, by their names at the endpoint. request_id is
// shared by the entries of one request.
var fields = map[Kind][]string{
	KindEvents: {"actor", "from", "ip", "key", "keyspace", "request_id", "tenant", "to", "type"},
	KindUses:   {"endpoint", "from", "ip", "key", "keyspace", "node", "outcome", "reason", "request_id", "scope", "tenant", "to"},
	KindBlocks: {"from", "ip", "keyspace", "node", "reason", "to"},
	KindUsage:  {"from", "key", "keyspace", "per", "tenant", "to"},
}

// Filter narrows what is asked for; all that is set must hold. Zero members
// narrow nothing. ParseFilter makes one.
type Filter struct {
	kind      Kind
	given     map[string]string // as the reader wrote it, for the record
	Keyspace  events.KeyspaceID
	Tenant    events.TenantID
	Key       events.KeyID
	Actor     string
	Type      events.Type
	RequestID string
	IP        netip.Prefix // one address is a prefix of full length
	IPUnknown bool         // only where the address is not known
	Outcome   string       // allowed or denied
	Reason    events.Reason
	Scope     string
	Endpoint  string
	Node      events.NodeID
	From, To  events.Time // by the event's or use's own time; To is excluded
	PerDay    bool        // usage: cells of a day instead of an hour
}

// ParseFilter reads the filter of a kind. It reports every fault at once.
func ParseFilter(kind Kind, given map[string]string) (Filter, input.FieldErrors) {
	f := Filter{kind: kind, given: given}
	var faults input.FieldErrors
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(fields[kind], name) {
			faults.Add(input.EchoName(name), "unknown_field", fmt.Sprintf("no filter of %s; they are %s", kind, strings.Join(fields[kind], ", ")))
			continue
		}
		if err := f.set(name, given[name]); err != nil {
			faults.Add(name, "invalid", err.Error())
		}
	}
	if f.From != 0 && f.To != 0 && f.From >= f.To {
		faults.Add("to", "invalid", "want an instant after from")
	}
	return f, faults
}

func (f *Filter) set(name, v string) (err error) {
	switch name {
	case "keyspace":
		f.Keyspace = events.KeyspaceID(v)
		return f.Keyspace.Validate()
	case "tenant":
		f.Tenant = events.TenantID(v)
		return f.Tenant.Validate()
	case "key":
		f.Key, err = events.ParseKeyID(v)
	case "actor":
		f.Actor = v
		if (events.Actor{Kind: events.ActorKey, ID: v}).Validate() != nil && (events.Actor{Kind: events.ActorSystem, ID: v}).Validate() != nil {
			return fmt.Errorf("want the id of a key (key_…) or the name of a component")
		}
	case "type":
		f.Type = events.Type(v)
		if events.Version(f.Type) == 0 {
			return fmt.Errorf("want a type of event, as key.revoked; they are %s", strings.Join(types(), ", "))
		}
	case "request_id":
		f.RequestID = v
		if err := input.AcceptText(v, 64); err != nil || v == "" {
			return fmt.Errorf("want 1 to 64 characters")
		}
	case "ip":
		if f.IPUnknown = v == unknownIP; !f.IPUnknown {
			f.IP, err = parseIP(v)
		}
	case "outcome":
		f.Outcome = v
		if v != "allowed" && v != "denied" {
			return fmt.Errorf("want allowed or denied")
		}
	case "reason":
		f.Reason, err = events.ParseReason(v)
	case "scope":
		f.Scope = v
		return keyspace.ValidScope(v)
	case "endpoint":
		f.Endpoint = v
		return events.ValidEndpoint(v)
	case "node":
		f.Node = events.NodeID(v)
		return f.Node.Validate()
	case "from":
		f.From, err = events.ParseTimeLenient(v)
	case "to":
		f.To, err = events.ParseTimeLenient(v)
	case "per":
		f.PerDay = v == "day"
		if v != "day" && v != "hour" {
			return fmt.Errorf("want hour or day")
		}
	}
	return err
}

// unknownIP is the value of the filter ip for uses and events without an address.
const unknownIP = "unknown"

// parseIP reads an address or a network, without a zone; host bits are an error,
// because the reader meant something else than it would get.
func parseIP(s string) (netip.Prefix, error) {
	fault := fmt.Errorf("want an address or a network without host bits, as 203.0.113.7 or 203.0.113.0/24; or %s", unknownIP)
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return netip.Prefix{}, fault
	}
	return p, nil
}

func types() []string {
	var out []string
	for _, t := range events.Types() {
		out = append(out, string(t))
	}
	return out
}

// Scope is what a reader may see: the restrictions of its principal. Every query
// takes one and always applies it (A7). The zero Scope sees nothing.
type Scope struct {
	some      bool // false: nothing at all
	builtin   bool // may see the built-in keyspace
	keyspaces []events.KeyspaceID
	tenants   []events.TenantID
}

// everything is the scope of who may see all.
var everything = Scope{some: true, builtin: true}

// ScopeOf returns what the principal may see. Without restrictions that is
// everything. Restricted to tenants it sees neither the events of a keyspace as a
// whole, nor uses of unknown keys, nor anything of the built-in keyspace, as in
// events.Principal.Reaches.
func ScopeOf(p *events.Principal) Scope {
	return Scope{some: true, builtin: p.Enters(events.Builtin), keyspaces: p.Keyspaces, tenants: p.Tenants}
}

// binding names the question for the cursor: kind, filter and scope.
func binding(scope Scope, f *Filter) [8]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q %v %q %q", f.kind, scope.some, scope.keyspaces, scope.tenants)
	for _, name := range slices.Sorted(maps.Keys(f.given)) {
		fmt.Fprintf(h, " %q=%q", name, f.given[name])
	}
	return [8]byte(h.Sum(nil))
}

// Cursor says where the next page begins. Its text is opaque, and good for the
// same question by the same reader only.
type Cursor struct {
	walk       events.Seq  // of the audit.queried that the first page put on the record
	bound      events.Seq  // what had been copied at the first page; later rows stay out
	boundReads events.Seq  // the same of the read log, for the trail
	time       events.Time // of the last row seen
	seq        events.Seq
	n          uint64 // of the last row: its number in the message, its reason, or its log in trailStreams
}

// cursorLen is version, binding, six numbers, CRC-32 (IEEE) of what precedes it.
const cursorLen = 1 + 8 + 6*8 + 4

func (c Cursor) encode(scope Scope, f *Filter) string {
	bind := binding(scope, f)
	b := append([]byte{2}, bind[:]...)
	for _, v := range []uint64{uint64(c.walk), uint64(c.bound), uint64(c.boundReads), uint64(c.time), uint64(c.seq), c.n} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseCursor reads what encode printed for the same scope and filter.
func parseCursor(s string, scope Scope, f *Filter) (*Cursor, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != cursorLen || b[0] != 2 || crc32.ChecksumIEEE(b[:cursorLen-4]) != binary.BigEndian.Uint32(b[cursorLen-4:]) {
		return nil, fmt.Errorf("want the next_cursor of an answer")
	}
	if [8]byte(b[1:9]) != binding(scope, f) {
		return nil, fmt.Errorf("want the next_cursor of an answer to the same question, with the same filters and the same key")
	}
	at := func(i int) uint64 { return binary.BigEndian.Uint64(b[9+8*i:]) }
	c := &Cursor{events.Seq(at(0)), events.Seq(at(1)), events.Seq(at(2)), events.Time(at(3)), events.Seq(at(4)), at(5)}
	if at(3) > 1<<62 || (f.kind == KindUsage && c.n > uint64(len(events.Reasons()))) || (f.kind == KindEvents && c.n >= uint64(len(trailStreams))) {
		return nil, fmt.Errorf("want the next_cursor of an answer")
	}
	return c, nil
}
