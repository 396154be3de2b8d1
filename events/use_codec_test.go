package events

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"
)

// useBatches draws any valid batch.
var useBatches = rapid.Custom(func(t *rapid.T) UseBatch {
	b := UseBatch{
		Log:   LogID(drawULID(t, "log")),
		Node:  NodeID(rapid.StringMatching(`[A-Za-z0-9_][A-Za-z0-9_-]{0,63}`).Draw(t, "node")),
		Epoch: rapid.Int64Min(1).Draw(t, "epoch"),
		Kind:  BatchKind(rapid.IntRange(1, 5).Draw(t, "kind")),
		First: rapid.Uint64Range(1, 1<<40).Draw(t, "first"),
	}
	switch b.Kind {
	case BatchOpen:
		b.First = 1
	case BatchGap:
		b.Count = rapid.Uint64Range(0, 1<<40).Draw(t, "count")
		b.Note = rapid.StringMatching(`[ -~é-ÿ]{0,60}`).Draw(t, "note")
		b.Until = Time(rapid.Int64Range(0, int64(maxTime)).Draw(t, "until"))
		b.Since = Time(rapid.Int64Range(0, int64(b.Until)).Draw(t, "since"))
	case BatchUses:
		b.Uses = rapid.SliceOfN(uses, 1, 40).Draw(t, "uses")
	case BatchSuppressed:
		b.Tallies = rapid.SliceOfN(tallies, 1, 40).Draw(t, "tallies")
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
	if rapid.IntRange(0, 3).Draw(t, "has a request") == 0 {
		u.RequestID = RequestID(drawULID(t, "request"))
	}
	if rapid.IntRange(0, 3).Draw(t, "has an endpoint") == 0 {
		u.Endpoint = rapid.StringMatching(`(GET|PUT) /v1/[a-c{}/]{0,3}`).Draw(t, "endpoint")
	}
	return u
})

var tallies = rapid.Custom(func(t *rapid.T) Tally {
	u := uses.Draw(t, "use")
	if u.Reason.Allowed() {
		u.Reason = ReasonKeyUnknown
	}
	block := BlockOf(u.IP)
	if rapid.IntRange(0, 3).Draw(t, "any block") == 0 {
		block = AnyBlock()
	}
	return Tally{Time: u.Time, Until: Time(rapid.Int64Range(int64(u.Time), int64(maxTime)).Draw(t, "until")),
		Keyspace: u.Keyspace, Reason: u.Reason, Block: block, Count: rapid.Uint64Range(1, MaxTally).Draw(t, "count")}
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

func goodBatch() UseBatch {
	return UseBatch{
		Log: LogID{15: 1}, Node: "node-1", Epoch: 1, Kind: BatchUses, First: 1,
		Uses: []Use{{
			Time: 1, Keyspace: "scribe-sight", Tenant: "acme", Key: KeyID{15: 7}, Reason: ReasonOK, Scope: "read",
			Resource: Resource{"project", "a@b"}, IP: netip.MustParseAddr("192.0.2.1"), Cost: 1, Seq: 3,
			Endpoint: "GET /v1/keys/{id}", RequestID: RequestID{15: 9},
		}},
	}
}

// suppressed is a batch of 10 suppressed uses.
func suppressed() UseBatch {
	return UseBatch{Log: LogID{15: 1}, Node: "node-1", Epoch: 1, Kind: BatchSuppressed, First: 7,
		Tallies: []Tally{{Time: 1, Until: 9, Keyspace: "scribe-sight", Reason: ReasonKeyUnknown, Block: netip.MustParsePrefix("192.0.2.0/24"), Count: 10}}}
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
		"until: want":    func(b *UseBatch) { b.Until = 1 },
		"two instants":   func(b *UseBatch) { b.Kind, b.Uses, b.Since, b.Until = BatchGap, nil, 2, 1 },
		"note":           func(b *UseBatch) { b.Kind, b.Uses, b.Note = BatchGap, nil, "\n" },
		"0 uses":         func(b *UseBatch) { b.Uses = nil },
		"1 uses":         func(b *UseBatch) { b.Kind = BatchGap },
		"65537 uses":     func(b *UseBatch) { b.Uses = make([]Use, 65537) },
		"use 0: time":    func(b *UseBatch) { b.Uses[0].Time = 0 },
		"use 0: keyspac": func(b *UseBatch) { b.Uses[0].Keyspace = "" },
		"use 0: tenant":  func(b *UseBatch) { b.Uses[0].Key = KeyID{} },
		"tenant \"\"":    func(b *UseBatch) { b.Uses[0].Tenant = "" },
		"reason 0":       func(b *UseBatch) { b.Uses[0].Reason = 0 },
		"reason 15":      func(b *UseBatch) { b.Uses[0].Reason = 15 },
		"endpoint":       func(b *UseBatch) { b.Uses[0].Endpoint = "GET /v1/keys/key_1?x=y" },
		"scope \"a@b\"":  func(b *UseBatch) { b.Uses[0].Scope = "a@b" }, // a resource id of the same row
		"scope \"a b\"":  func(b *UseBatch) { b.Uses[0].Scope = "a b" },
		"resource id":    func(b *UseBatch) { b.Uses[0].Resource.ID = "" },
		"ip: want":       func(b *UseBatch) { b.Uses[0].IP = netip.MustParseAddr("fe80::1%eth0") },
		"cost":           func(b *UseBatch) { b.Uses[0].Cost = 0 },
		"1 tallies":      func(b *UseBatch) { b.Tallies = suppressed().Tallies },
		"0 tallies":      func(b *UseBatch) { *b = suppressed(); b.Tallies = nil },
		"2 uses":         func(b *UseBatch) { u := b.Uses[0]; *b = suppressed(); b.Uses = []Use{u, u} },
		"want a denial":  func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Reason = ReasonOK },
		"count 0":        func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Count = 0 },
		"count 10995116": func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Count = MaxTally + 1 },
		"tally 0: reaso": func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Reason = 0 },
		"tally 0: keysp": func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Keyspace = "No" },
		"tally 0: time":  func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Time = -1 },
		"tally 0: until": func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Until = 0 },
		"0: until: want": func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Until = maxTime + 1 },
		"192.0.2.7/24":   func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Block = netip.MustParsePrefix("192.0.2.7/24") },
		"block ::ffff":   func(b *UseBatch) { *b = suppressed(); b.Tallies[0].Block = netip.MustParsePrefix("::ffff:0:0/96") },
		"block invalid": func(b *UseBatch) {
			*b = suppressed()
			b.Tallies[0].Block = netip.PrefixFrom(netip.IPv6Unspecified(), 129)
		},
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
	tally := func(f protowire.Number, v ...byte) []byte {
		b := suppressed()
		was := data
		defer func() { data = was }()
		if data, err = EncodeUses(&b); err != nil {
			t.Fatal(err)
		}
		return column(f, v...)
	}
	for _, c := range []struct {
		want string
		data []byte
	}{
		{"field 36 is unknown", number(36, 1)},
		{"span: want them on suppressed uses only", column(fTimes, 1)},
		{"span: want them on suppressed uses only", column(fBlockBits, 1)},
		{"span: want them on suppressed uses only", column(fSpan, 1)},
		{"field first stands twice", protowire.AppendVarint(protowire.AppendTag(bytes.Clone(data), fFirst, protowire.VarintType), 1)},
		{"field node: wire type", set(fNode, protowire.VarintType, []byte{1})},
		{"field time: wire type", set(fTime, protowire.VarintType, []byte{2})}, // unpacked
		{"field log: 2 bytes", column(fLog, 1, 2)},
		{"log: want", set(fLog, 0, nil)},
		{"node", column(fNode, 'a', 0xff)},
		{"epoch", number(fEpoch, 0)},
		{"kind 257 of a batch is unknown", number(fKind, 257)},
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
		{"reason 15 of a use is unknown", column(fReason, 15)},
		{"out of range", column(fExtraCost, 0xff, 0xff, 0xff, 0xff, 0x0f)},
		{"field endpoints: endpoint", column(fEndpoints, 'x')},
		{"request columns differ", column(fRequestRow)},
		{"request columns differ", column(fRequestRow, 0, 0)},
		{"request columns differ", column(fRequestID, 1)},
		{"request columns differ", column(fRequestEndpoint, 1, 1)},
		{"request 0: no such row", column(fRequestRow, 1)},
		{"request 0: no such row", column(fRequestRow, over64...)},
		{"request 0: want an id or an endpoint", column(fRequestEndpoint, 2)},
		{"no row refers to", column(fRequestEndpoint, 0)},
		{"unexpected EOF", data[:len(data)-1]},
		{"want at most 1048576", make([]byte, MaxUseBatchBytes+1)},
		{"more than 65536", column(fTime, bytes.Repeat([]byte{1}, 65537)...)},
		{"log: want", nil},
		{"span differ", tally(fTimes)},
		{"span differ", tally(fTimes, 1, 1)},
		{"span differ", tally(fBlockBits, 24, 24)},
		{"span differ", tally(fSpan, 1, 1)},
		{"span out of range", tally(fSpan, over64...)},
		{"until: want", tally(fSpan, protowire.AppendVarint(nil, uint64(maxTime))...)},
		{"block_bits 33: want at most 32", tally(fBlockBits, 33)},
		{"block_bits 18446744073709551615", tally(fBlockBits, over64...)},
		{"no row refers to", tally(fAddr, 0)},
		{"block 192.0.2.0/16", tally(fBlockBits, 16)},
		{"time and holder differ", tally(fTime)},
		{"count 0", tally(fTimes, 0)},
		{"count 18446744073709551615", tally(fTimes, over64...)},
		{"want a time, a keyspace", tally(fExtraCost, 1)},
		{"want a time, a keyspace", tally(fSeq, 2)},
		{"block 1.2.3.4/24", tally(fAddr4, 1, 2, 3, 4)},
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
		{Log: b.Log, Node: "n", Epoch: 1, Kind: BatchGap, First: 7, Note: "the buffer was full"}, suppressed()} {
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
