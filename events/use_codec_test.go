package events

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"
)

// useBatches draws any valid batch.
var useBatches = rapid.Custom(func(t *rapid.T) UseBatch {
	b := UseBatch{
		Log:   LogID(drawULID(t, "log")),
		Node:  NodeID(rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_-]{0,63}`).Draw(t, "node")),
		Epoch: rapid.Int64Min(1).Draw(t, "epoch"),
		Kind:  BatchKind(rapid.IntRange(1, 4).Draw(t, "kind")),
		First: rapid.Uint64Range(1, 1<<40).Draw(t, "first"),
	}
	switch b.Kind {
	case BatchOpen:
		b.First = 1
	case BatchGap:
		b.Count = rapid.Uint64Range(0, 1<<40).Draw(t, "count")
		b.Note = rapid.StringMatching(`[ -~é-ÿ]{0,60}`).Draw(t, "note")
	case BatchUses:
		b.Uses = rapid.SliceOfN(uses, 1, 40).Draw(t, "uses")
	}
	return b
})

var uses = rapid.Custom(func(t *rapid.T) Use {
	u := Use{
		Time:   Time(rapid.Int64Range(1, int64(maxTime)).Draw(t, "time")),
		Reason: Reason(rapid.IntRange(1, len(reasonNames)-1).Draw(t, "reason")),
		Cost:   rapid.Uint32Min(1).Draw(t, "cost"),
		Seq:    Seq(rapid.Uint64().Draw(t, "seq")),
	}
	if rapid.Bool().Draw(t, "named keyspace") {
		u.Keyspace = KeyspaceID(rapid.StringMatching(`[a-c][a-z0-9-]{0,4}`).Draw(t, "keyspace"))
		if rapid.Bool().Draw(t, "known key") {
			u.Key = KeyID(drawULID(t, "key"))
			u.Tenant = TenantID(rapid.StringMatching(`[a-c][A-Za-z0-9_-]{0,3}`).Draw(t, "tenant"))
		}
	}
	if rapid.Bool().Draw(t, "asks for a scope") {
		u.Scope = rapid.StringMatching(`[a-c][a-z:/*.-]{0,5}`).Draw(t, "scope")
	}
	if rapid.Bool().Draw(t, "asks for a resource") {
		u.Resource = Resource{rapid.SampledFrom([]string{"project", "division"}).Draw(t, "kind"),
			rapid.StringMatching(`[a-c][a-z0-9@.-]{0,4}`).Draw(t, "resource id")}
	}
	switch rapid.IntRange(0, 2).Draw(t, "family") {
	case 1:
		u.IP = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip4")))
	case 2:
		u.IP = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip6")))
	}
	return u
})

func drawULID(t *rapid.T, label string) (id [16]byte) {
	copy(id[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))
	id[15] |= 1 // never the zero id
	return id
}

func TestUsesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := useBatches.Draw(t, "batch")
		data, err := EncodeUses(&want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeUses(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		for i := range data { // the result shares no memory with the input
			data[i] = 0xff
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatal("the decoded batch changed with its input")
		}
	})
}

// published compiles the published shape; it shares no code with the codec.
func published(t testing.TB) protoreflect.MessageDescriptor {
	t.Helper()
	c := protocompile.Compiler{Resolver: &protocompile.SourceResolver{ImportPaths: []string{"../schemas/proto"}}}
	files, err := c.Compile(context.Background(), "use_batch.v1.proto")
	if err != nil {
		t.Fatal(err)
	}
	return files[0].Messages().ByName("UseBatch")
}

// TestUsesPublishedShape reads our bytes by the published .proto and a naive
// reading of its rules, and reads with ours what a standard encoder writes.
func TestUsesPublishedShape(t *testing.T) {
	desc := published(t)
	rapid.Check(t, func(t *rapid.T) {
		want := useBatches.Draw(t, "batch")
		data, err := EncodeUses(&want)
		if err != nil {
			t.Fatal(err)
		}
		m := dynamicpb.NewMessage(desc)
		if err := proto.Unmarshal(data, m); err != nil {
			t.Fatal(err)
		}
		if len(m.GetUnknown()) > 0 {
			t.Fatal("bytes outside the published shape")
		}
		if got := naiveBatch(m); !reflect.DeepEqual(got, want) {
			t.Fatalf("by the published shape %+v\nwant %+v", got, want)
		}
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeUses(again)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("from a standard encoder %+v\nwant %+v", got, want)
		}
	})
}

// TestUsesPublishedReasons: the published names and numbers of the reasons are
// ours, all of them.
func TestUsesPublishedReasons(t *testing.T) {
	values := published(t).Enums().ByName("Reason").Values()
	if values.Len() != len(Reasons())+1 {
		t.Errorf("%d published reasons, with the unspecified one; want %d", values.Len(), len(Reasons())+1)
	}
	for _, r := range Reasons() {
		want := "REASON_" + strings.ToUpper(r.String())
		if v := values.ByNumber(protoreflect.EnumNumber(r)); v == nil || string(v.Name()) != want {
			t.Errorf("reason %d is published as %v, want %s", r, v, want)
		}
	}
}

func naiveBatch(m *dynamicpb.Message) UseBatch {
	get := func(name string) protoreflect.Value {
		return m.Get(m.Descriptor().Fields().ByName(protoreflect.Name(name)))
	}
	col := func(name string, i int) uint64 {
		if l := get(name).List(); l.Len() > 0 {
			return l.Get(i).Uint()
		}
		return 0
	}
	// resolve turns the references of a column into places in its table, -1 for none.
	resolve := func(name string, rows int) []int {
		next, out := 0, make([]int, rows)
		for i := range out {
			switch v := col(name, i); v {
			case 0:
				out[i] = -1
			case 1:
				out[i] = next
				next++
			default:
				out[i] = int(v) - 2
			}
		}
		return out
	}
	str := func(table string, i int) string {
		if i < 0 {
			return ""
		}
		return get(table).List().Get(i).String()
	}
	b := UseBatch{
		Log: LogID(get("log").Bytes()), Node: NodeID(get("node").String()), Epoch: get("epoch").Int(),
		Kind: BatchKind(get("kind").Enum()), First: get("first").Uint(), Count: get("count").Uint(), Note: get("note").String(),
	}
	keys, ids, rows := get("holder_key").Bytes(), get("resource_id").List(), get("time").List().Len()
	spaces, tenants := resolve("holder_keyspace", len(keys)/16), resolve("holder_tenant", len(keys)/16)
	kinds := resolve("resource_kind", ids.Len())
	holders, scopes, resources := resolve("holder", rows), resolve("scope", rows), resolve("resource", rows)
	four, six := get("addr4").Bytes(), get("addr6").Bytes()
	var addrs []netip.Addr
	var at, seq int64
	for i := range rows {
		at += get("time").List().Get(i).Int()
		if l := get("seq").List(); l.Len() > 0 {
			seq += l.Get(i).Int()
		}
		u := Use{Time: Time(at), Seq: Seq(seq), Reason: Reason(get("reason").List().Get(i).Enum()),
			Scope: str("scopes", scopes[i]), Cost: uint32(col("extra_cost", i)) + 1}
		if h := holders[i]; h >= 0 {
			u.Key = KeyID(keys[16*h:])
			u.Keyspace, u.Tenant = KeyspaceID(str("keyspaces", spaces[h])), TenantID(str("tenants", tenants[h]))
		}
		if r := resources[i]; r >= 0 {
			u.Resource = Resource{str("kinds", kinds[r]), ids.Get(r).String()}
		}
		switch a := col("addr", i); a {
		case 0:
		case 1:
			u.IP, four = netip.AddrFrom4([4]byte(four)), four[4:]
			addrs = append(addrs, u.IP)
		case 2:
			u.IP, six = netip.AddrFrom16([16]byte(six)), six[16:]
			addrs = append(addrs, u.IP)
		default:
			u.IP = addrs[a-3]
		}
		b.Uses = append(b.Uses, u)
	}
	return b
}

// TestUsesPublishedEnums pins the numbers of the closed sets to the published
// names.
func TestUsesPublishedEnums(t *testing.T) {
	enums := published(t).Enums()
	reasons := enums.ByName("Reason").Values()
	if reasons.Len() != len(reasonNames) {
		t.Fatalf("%d reasons are published, %d exist", reasons.Len(), len(reasonNames))
	}
	for _, r := range Reasons() {
		v := reasons.ByNumber(protoreflect.EnumNumber(r))
		if v == nil || string(v.Name()) != "REASON_"+strings.ToUpper(r.String()) {
			t.Errorf("reason %d %s is published as %v", r, r, v)
		}
	}
	kinds := map[BatchKind]string{BatchUses: "KIND_USES", BatchOpen: "KIND_OPEN", BatchClose: "KIND_CLOSE", BatchGap: "KIND_GAP"}
	if n := enums.ByName("Kind").Values().Len(); n != len(kinds)+1 {
		t.Fatalf("%d kinds are published", n)
	}
	for k, name := range kinds {
		if v := enums.ByName("Kind").Values().ByNumber(protoreflect.EnumNumber(k)); v == nil || string(v.Name()) != name {
			t.Errorf("kind %d is published as %v, want %s", k, v, name)
		}
	}
	fields := published(t).Fields()
	for f, name := range useFieldNames {
		if d := fields.ByNumber(protoreflect.FieldNumber(f)); name != "" && (d == nil || string(d.Name()) != name) || name == "" && d != nil {
			t.Errorf("field %d is %q here, %v in the published shape", f, name, d)
		}
	}
}

func goodBatch() UseBatch {
	return UseBatch{
		Log: LogID{15: 1}, Node: "node-1", Epoch: 1, Kind: BatchUses, First: 1,
		Uses: []Use{{
			Time: 1, Keyspace: "scribe-sight", Tenant: "acme", Key: KeyID{15: 7}, Reason: ReasonOK, Scope: "read",
			Resource: Resource{"project", "a@b"}, IP: netip.MustParseAddr("192.0.2.1"), Cost: 1, Seq: 3,
		}},
	}
}

func TestEncodeUsesRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*UseBatch){
		"log":            func(b *UseBatch) { b.Log = LogID{} },
		"node":           func(b *UseBatch) { b.Node = "a.b" },
		"epoch":          func(b *UseBatch) { b.Epoch = 0 },
		"kind":           func(b *UseBatch) { b.Kind = 9; b.Uses = nil },
		"first":          func(b *UseBatch) { b.First = 0 },
		"first 18":       func(b *UseBatch) { b.First = 1<<64 - 1 },
		"count, note":    func(b *UseBatch) { b.Count = 1 },
		"note":           func(b *UseBatch) { b.Kind, b.Uses, b.Note = BatchGap, nil, "\n" },
		"0 uses":         func(b *UseBatch) { b.Uses = nil },
		"1 uses":         func(b *UseBatch) { b.Kind = BatchGap },
		"65537 uses":     func(b *UseBatch) { b.Uses = make([]Use, 65537) },
		"use 0: time":    func(b *UseBatch) { b.Uses[0].Time = 0 },
		"use 0: keyspac": func(b *UseBatch) { b.Uses[0].Keyspace = "" },
		"use 0: tenant":  func(b *UseBatch) { b.Uses[0].Key = KeyID{} },
		"tenant \"\"":    func(b *UseBatch) { b.Uses[0].Tenant = "" },
		"reason 0":       func(b *UseBatch) { b.Uses[0].Reason = 0 },
		"reason 14":      func(b *UseBatch) { b.Uses[0].Reason = 14 },
		"scope \"a@b\"":  func(b *UseBatch) { b.Uses[0].Scope = "a@b" }, // a resource id of the same row
		"scope \"a b\"":  func(b *UseBatch) { b.Uses[0].Scope = "a b" },
		"resource id":    func(b *UseBatch) { b.Uses[0].Resource.ID = "" },
		"ip: want":       func(b *UseBatch) { b.Uses[0].IP = netip.MustParseAddr("fe80::1%eth0") },
		"cost":           func(b *UseBatch) { b.Uses[0].Cost = 0 },
	} {
		b := goodBatch()
		if _, err := EncodeUses(&b); err != nil {
			t.Fatal(err)
		}
		spoil(&b)
		if _, err := EncodeUses(&b); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEncodeUsesRefusesOversize(t *testing.T) {
	b := goodBatch()
	for i := range 40_000 { // each row brings a holder, an address and a scope of its own
		u := b.Uses[0]
		u.Key = KeyID{0: byte(i), 1: byte(i >> 8), 15: 1}
		u.Scope = fmt.Sprintf("scope:%d", i)
		b.Uses = append(b.Uses, u)
	}
	if _, err := EncodeUses(&b); err == nil || !strings.Contains(err.Error(), "send fewer uses") {
		t.Fatal(err)
	}
}

// TestDecodeUsesRefuses spoils a valid message field by field, on the wire.
func TestDecodeUsesRefuses(t *testing.T) {
	b := goodBatch()
	data, err := EncodeUses(&b)
	if err != nil {
		t.Fatal(err)
	}
	// set replaces field f; raw is what follows the tag.
	set := func(f protowire.Number, typ protowire.Type, raw []byte) []byte {
		var out []byte
		for rest := data; len(rest) > 0; {
			num, _, n := protowire.ConsumeField(rest)
			if num != f {
				out = append(out, rest[:n]...)
			}
			rest = rest[n:]
		}
		if raw == nil {
			return out
		}
		return append(protowire.AppendTag(out, f, typ), raw...)
	}
	column := func(f protowire.Number, v ...byte) []byte {
		return set(f, protowire.BytesType, protowire.AppendBytes(nil, v))
	}
	over64 := bytes.Repeat([]byte{0xff}, 10)
	over64 = append(over64, 1)
	number := func(f protowire.Number, v uint64) []byte {
		return set(f, protowire.VarintType, protowire.AppendVarint(nil, v))
	}
	empty, err := EncodeUses(&UseBatch{Log: b.Log, Node: b.Node, Epoch: 1, Kind: BatchClose, First: 1})
	if err != nil {
		t.Fatal(err)
	}
	kind := protowire.AppendVarint(protowire.AppendTag(nil, fKind, protowire.VarintType), uint64(BatchClose))
	empty = bytes.Replace(empty, kind, []byte{kind[0], byte(BatchUses)}, 1)
	for _, c := range []struct {
		want string
		data []byte
	}{
		{"field 28 is unknown", number(28, 1)},
		{"field 19 is unknown", number(19, 1)},
		{"field first stands twice", protowire.AppendVarint(protowire.AppendTag(bytes.Clone(data), fFirst, protowire.VarintType), 1)},
		{"field node: wire type", set(fNode, protowire.VarintType, []byte{1})},
		{"field time: wire type", set(fTime, protowire.VarintType, []byte{2})}, // unpacked
		{"field log: 2 bytes", column(fLog, 1, 2)},
		{"log: want", set(fLog, 0, nil)},
		{"node", column(fNode, 'a', 0xff)},
		{"epoch", number(fEpoch, 0)},
		{"field kind: 257", number(fKind, 257)},
		{"0 uses", empty},
		{"field keyspaces: keyspace", set(fKeyspaces, protowire.BytesType, []byte{0})},
		{"field tenants: tenant", column(fTenants, 0xff)},
		{"field scopes: scope", column(fScopes, '!')},
		{"field kinds: resource kind", column(fKinds, 'A')},
		{"field resource_id: resource id", column(fResourceID, '/')},
		{"addr4, addr6", column(fAddr4, 1, 2, 3)},
		{"addr4, addr6", column(fAddr6, 1, 2, 3, 4)},
		{"holder columns differ", column(fHolderKey, 1)},
		{"holder columns differ", column(fHolderTenant, 1, 1)},
		{"holder 0: want", column(fHolderTenant, 9)},
		{"holder 0: want", column(fHolderTenant, 0)},
		{"holder 0: want", column(fHolderKeyspace, 0)},
		{"holder 0: want", column(fHolderKey, make([]byte, 16)...)},
		{"resource columns differ", column(fResourceKind)},
		{"resource 0: want a kind", column(fResourceKind, 0)},
		{"use 0: time", column(fTime, 0)},
		{"columns time and holder differ", column(fTime, 2, 2)},
		{"columns time and seq differ", column(fSeq, 0x80)},
		{"columns time and extra_cost differ", column(fExtraCost)},
		{"above 64 bits", column(fSeq, over64...)},
		{"use 0: time", column(fTime, over64...)},
		{"past the end", column(fHolder, 2)},
		{"past the end", column(fHolder, over64...)},
		{"past the end", column(fScope, 2)},
		{"past the end", column(fResource, 2)},
		{"past the end", column(fAddr, 2)},
		{"past the end", column(fAddr, 3)},
		{"no row refers to", column(fHolder, 0)},
		{"no row refers to", column(fScope, 0)},
		{"no row refers to", column(fResource, 0)},
		{"no row refers to", column(fAddr, 0)},
		{"no row refers to", column(fAddr4, 1, 2, 3, 4, 5, 6, 7, 8)},
		{"reason 0", column(fReason, 0)},
		{"reason 0", set(fReason, 0, nil)},
		{"out of range", column(fReason, 14)},
		{"out of range", column(fExtraCost, 0xff, 0xff, 0xff, 0xff, 0x0f)},
		{"unexpected EOF", data[:len(data)-1]},
		{"want at most 1048576", make([]byte, MaxUseBatchBytes+1)},
		{"more than 65536", column(fTime, bytes.Repeat([]byte{1}, 65537)...)},
		{"log: want", nil},
	} {
		if got, err := DecodeUses(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v, %+v", c.want, err, got)
		}
	}
}

// FuzzDecodeUses: no input makes the decoder panic, and what it accepts encodes
// to bytes that decode to the same batch.
func FuzzDecodeUses(f *testing.F) {
	b := goodBatch()
	b.Uses = append(b.Uses, Use{Time: 2, Keyspace: "scribe-sight", Reason: ReasonKeyUnknown, Cost: 1, IP: netip.MustParseAddr("2001:db8::1")},
		Use{Time: 3, Reason: ReasonKeyMissing, Cost: 300, Seq: 1 << 40})
	for _, b := range []UseBatch{b, {Log: b.Log, Node: "n", Epoch: 1, Kind: BatchOpen},
		{Log: b.Log, Node: "n", Epoch: 1, Kind: BatchGap, First: 7, Note: "the buffer was full"}} {
		data, err := EncodeUses(&b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := DecodeUses(data)
		if err != nil {
			return
		}
		again, err := EncodeUses(&b)
		if err != nil {
			t.Fatalf("accepted and cannot be encoded: %v", err)
		}
		b2, err := DecodeUses(again)
		if err != nil {
			t.Fatalf("the encoder's own bytes are refused: %v", err)
		}
		if !reflect.DeepEqual(b, b2) {
			t.Fatalf("%+v\n%+v", b, b2)
		}
	})
}

// TestDecodeUsesBounded: hostile input costs memory in proportion to what was
// sent, at most some tens of megabytes.
func TestDecodeUsesBounded(t *testing.T) {
	entry := protowire.AppendString(protowire.AppendTag(nil, fTenants, protowire.BytesType), "x")
	column := func(f protowire.Number) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, f, protowire.BytesType), make([]byte, MaxUseBatchBytes-8))
	}
	for name, data := range map[string][]byte{
		"strings": bytes.Repeat(entry, MaxUseBatchBytes/len(entry)),
		"addrs":   column(fAddr4),
		"time":    column(fTime),
		"holders": column(fHolderKey),
		"kinds":   column(fResourceKind),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := DecodeUses(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Errorf("%s: %d bytes of input cost %d bytes", name, len(data), got)
		}
	}
}

// mixes are the traffic that the benchmarks measure: 3000 uses, which is what
// 100 ms bring at 30k requests/s.
var mixes = map[string]func(r *rand.Rand) UseBatch{
	// One product: 50k keys of 2k tenants, of which a few bring most requests;
	// clients keep their address; nine in ten ask for a scope, a third for a resource.
	"zipf": func(r *rand.Rand) UseBatch {
		z := rand.NewZipf(r, 1.1, 8, 50_000)
		return mix(r, func() uint64 { return z.Uint64() }, func(key uint64) uint64 { return key }, 0.33)
	},
	// Every key equally often, of 1M keys and 2k tenants.
	"random keys": func(r *rand.Rand) UseBatch {
		return mix(r, func() uint64 { return r.Uint64N(1_000_000) }, func(key uint64) uint64 { return key }, 0.33)
	},
	// The worst: in addition every address and every resource is new.
	"all random": func(r *rand.Rand) UseBatch {
		return mix(r, func() uint64 { return r.Uint64N(1_000_000) }, func(uint64) uint64 { return r.Uint64() }, 1)
	},
}

func mix(r *rand.Rand, key func() uint64, client func(uint64) uint64, resources float64) UseBatch {
	b := UseBatch{Log: LogID{15: 1}, Node: "verifier-7", Epoch: 1767693600_000_000, Kind: BatchUses, First: 9_000_001}
	at, seq := Time(1767693600_000), Seq(40_000_000)
	scopes := []string{"", "read", "read", "read", "write", "projects:read", "projects:write", "upload", "read", "read"}
	for range 3000 {
		at += Time(r.Uint64N(2)) // 0 or 1 ms later
		seq += Seq(r.Uint64N(100) / 99)
		k := key()
		h := rand.New(rand.NewPCG(k, 1)) // what belongs to the key is drawn from the key
		u := Use{Time: at, Seq: seq, Cost: 1, Reason: ReasonOK, Keyspace: "scribe-sight", Scope: scopes[r.IntN(len(scopes))]}
		c := rand.New(rand.NewPCG(client(k), 2))
		u.IP = netip.AddrFrom4([4]byte{byte(c.Uint32()), byte(c.Uint32()), byte(c.Uint32()), byte(c.Uint32())})
		if c.IntN(5) == 0 {
			u.IP = netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, byte(c.Uint32()), byte(c.Uint32()), 15: byte(c.Uint32())})
		}
		switch r.IntN(50) {
		case 0:
			u.Reason = ReasonRateLimited
		case 1:
			u.Reason = ReasonScopeMissing
		case 2:
			u.Reason = ReasonKeyUnknown
		}
		if u.Reason != ReasonKeyUnknown {
			u.Tenant = TenantID(fmt.Sprintf("org_%x", h.Uint64N(2000)*0x9e3779b9))
			for i := range u.Key {
				u.Key[i] = byte(h.Uint32())
			}
			if r.Float64() < resources {
				u.Resource = Resource{"project", fmt.Sprintf("proj_%08x", c.Uint32()&^3|r.Uint32()&3)}
			}
		}
		b.Uses = append(b.Uses, u)
	}
	return b
}

func BenchmarkEncodeUses(b *testing.B) {
	for name, make := range mixes {
		b.Run(name, func(b *testing.B) {
			batch := make(rand.New(rand.NewPCG(1, 2)))
			var size int
			b.ReportAllocs()
			for b.Loop() {
				data, err := EncodeUses(&batch)
				if err != nil {
					b.Fatal(err)
				}
				size = len(data)
			}
			b.ReportMetric(float64(size)/float64(len(batch.Uses)), "bytes/use")
			b.ReportMetric(float64(len(batch.Uses)*b.N)/b.Elapsed().Seconds(), "uses/s")
		})
	}
}

func BenchmarkDecodeUses(b *testing.B) {
	for name, make := range mixes {
		b.Run(name, func(b *testing.B) {
			batch := make(rand.New(rand.NewPCG(1, 2)))
			data, err := EncodeUses(&batch)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeUses(data); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(batch.Uses)*b.N)/b.Elapsed().Seconds(), "uses/s")
		})
	}
}

// TestUseSize holds the goal of the stream: at most 32 bytes a use for traffic
// as products see it.
func TestUseSize(t *testing.T) {
	batch := mixes["zipf"](rand.New(rand.NewPCG(1, 2)))
	data, err := EncodeUses(&batch)
	if err != nil {
		t.Fatal(err)
	}
	if got := float64(len(data)) / float64(len(batch.Uses)); got > 32 {
		t.Errorf("%.1f bytes a use, want at most 32", got)
	}
}
