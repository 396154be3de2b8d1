package events

import (
	"context"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"pgregory.net/rapid"
)

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
		Since: Time(get("since").Int()), Until: Time(get("until").Int()),
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
		if b.Kind == BatchSuppressed {
			c := Tally{Time: u.Time, Until: u.Time + Time(col("span", i)), Keyspace: u.Keyspace, Reason: u.Reason, Count: get("times").List().Get(i).Uint()}
			if u.IP.IsValid() {
				c.Block = netip.PrefixFrom(u.IP, int(col("block_bits", i)))
			}
			b.Tallies = append(b.Tallies, c)
			continue
		}
		b.Uses = append(b.Uses, u)
	}
	requests := get("request_row").List()
	endpoints := resolve("request_endpoint", requests.Len())
	for i, row := 0, 0; i < requests.Len(); i, row = i+1, row+1 {
		row += int(requests.Get(i).Uint())
		b.Uses[row].RequestID = RequestID(get("request_id").Bytes()[16*i:])
		b.Uses[row].Endpoint = str("endpoints", endpoints[i])
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
	kinds := map[BatchKind]string{BatchUses: "KIND_USES", BatchOpen: "KIND_OPEN", BatchClose: "KIND_CLOSE", BatchGap: "KIND_GAP", BatchSuppressed: "KIND_SUPPRESSED"}
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
