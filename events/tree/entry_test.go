package tree_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

func TestEntry(t *testing.T) {
	document := sha256.Sum256([]byte("test"))
	subject := "kt.life.acme.t_1.key.key_01JZ0000000000000000000000"
	want := "urn:keytrail:entry:v1\n" + subject + "\n9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n"
	entry := tree.Entry(subject, document)
	if string(entry) != want {
		t.Fatalf("%q\nwant %q", entry, want)
	}
	leaf := tree.Hash(sha256.Sum256(append([]byte{0}, want...)))
	if tree.LeafHash(subject, document) != leaf || tree.EntryHash(entry) != leaf {
		t.Fatal("the leaf is not SHA-256(0x00 || entry)")
	}
}

func TestParseEntryRefuses(t *testing.T) {
	good := string(tree.Entry("kt.life.a.b.role.c", sha256.Sum256(nil)))
	first, rest, _ := strings.Cut(good, "\n")
	for name, entry := range map[string]string{
		"nothing":                "",
		"another version":        strings.Replace(good, ":v1", ":v2", 1),
		"CRLF":                   strings.ReplaceAll(good, "\n", "\r\n"),
		"no last line feed":      strings.TrimSuffix(good, "\n"),
		"trailing bytes":         good + "x",
		"a trailing line feed":   good + "\n",
		"upper-case hex":         strings.ToUpper(good[:0]) + first + "\nkt.life.a.b.role.c\n" + strings.ToUpper(good[len(good)-65:]),
		"a short hash":           good[:len(good)-3] + "\n",
		"a long hash":            good[:len(good)-1] + "00\n",
		"no subject":             first + "\n\n" + good[len(good)-65:],
		"a space in the subject": first + "\nkt.life.a b\n" + good[len(good)-65:],
		"DEL in the subject":     first + "\nkt.\x7f\n" + good[len(good)-65:],
		"a line more":            first + "\n" + rest[:len(rest)-65] + "more\n" + good[len(good)-65:],
		"a subject too long":     string(tree.Entry(strings.Repeat("a", tree.MaxSubject+1), sha256.Sum256(nil))),
		"far too long":           good + strings.Repeat("\n", 1<<17),
	} {
		if subject, _, err := tree.ParseEntry([]byte(entry)); err == nil {
			t.Errorf("%s is accepted as the entry of %q", name, subject)
		}
	}
}

// TestEntryIsShort: whatever an event holds, and whatever its aggregate is called,
// the entry is far from the 65,535 bytes of C2SP tlog-tiles.
func TestEntryIsShort(t *testing.T) {
	long := strings.Repeat("a", 64)
	var longest int
	for _, a := range []events.Aggregate{
		events.RoleAggregate(events.KeyspaceID(long[:63]), events.TenantID(long), events.RoleID(long)),
		{Kind: events.KindTenant, Keyspace: events.KeyspaceID(long[:63]), Tenant: events.TenantID(long), ID: long},
	} {
		if err := a.Validate(); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, len(tree.Entry(a.Subject(), [32]byte{})))
	}
	if longest > 400 {
		t.Fatalf("the longest entry of our subjects has %d bytes", longest)
	}
	if n := len(tree.Entry(strings.Repeat("a", tree.MaxSubject), [32]byte{})); n > 8192 {
		t.Fatalf("the entry of the longest subject that NATS takes has %d bytes", n)
	}
	largest := largestEvent()
	m, err := events.Encode(&largest)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Data) < 500_000 {
		t.Fatalf("the largest event has %d bytes: it is not the largest", len(m.Data))
	}
	if n := len(tree.Entry(m.Subject, m.Hash())); n > longest {
		t.Fatalf("%d bytes for a document of %d", n, len(m.Data))
	}
	rapid.Check(t, func(t *rapid.T) {
		e := logtest.GenEvent().Draw(t, "event")
		m, err := events.Encode(&e)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(tree.Entry(m.Subject, m.Hash())); n > longest {
			t.Fatalf("%d bytes for a document of %d, more than for the longest subject: %d", n, len(m.Data), longest)
		}
	})
}

// largestEvent creates a key with as much of everything as a key may have.
func largestEvent() events.Event {
	c := logtest.Created("secret")
	pad := func(prefix string, n int) string { return prefix + strings.Repeat("x", n-len(prefix)) }
	for i := range keyspace.MaxScopes {
		c.Scopes = append(c.Scopes, pad(fmt.Sprintf("s%03d", i), 100))
		c.Roles = append(c.Roles, events.RoleID(pad(fmt.Sprintf("r%03d", i), 64)))
	}
	for i := range events.MaxResources {
		c.Resources = append(c.Resources, events.Resource{Kind: strings.Repeat("k", 32), ID: pad(fmt.Sprintf("i%03d", i), 128)})
	}
	for i := range events.MaxAllowlist {
		addr := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, byte(i >> 8), byte(i)}
		c.Allowlist = append(c.Allowlist, netip.PrefixFrom(netip.AddrFrom16(addr), 128))
	}
	c.Metadata = map[string]string{}
	for i := range 32 {
		c.Metadata[pad(fmt.Sprintf("m%02d", i), 64)] = strings.Repeat("\u00fc", 500)
	}
	long := strings.Repeat("a", 64)
	return logtest.Event(events.KeyAggregate(events.KeyspaceID(long[:63]), events.TenantID(long), events.KeyID{1}), c)
}

func FuzzParseEntry(f *testing.F) {
	f.Add(tree.Entry("kt.life.acme.t_1.role.r", sha256.Sum256(nil)))
	f.Add([]byte("urn:keytrail:entry:v1\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		subject, document, err := tree.ParseEntry(b)
		if err != nil {
			return
		}
		if !bytes.Equal(tree.Entry(subject, document), b) { // T2
			t.Fatalf("%q is read as %q and %x", b, subject, document)
		}
		if tree.LeafHash(subject, document) != tree.EntryHash(b) {
			t.Fatal("two hashes of one leaf")
		}
	})
}

func TestLeafHashDoesNotAllocate(t *testing.T) {
	document := sha256.Sum256(nil)
	if n := testing.AllocsPerRun(100, func() { tree.LeafHash("kt.life.acme.t_1.key.key_01JZ0000000000000000000000", document) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}
