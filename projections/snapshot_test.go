package projections

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// reloadAnywhere is reload for a view that moves on meanwhile.
func reloadAnywhere(t testing.TB, v *Keys) *Keys {
	t.Helper()
	n, err := LoadKeys(bytes.NewReader(snapshot(t, v)), testLog)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rich returns a view with every kind of record in its snapshot.
func rich(t testing.TB) (*world, *Keys) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	w.role("ks", "acme", "dev", "read")
	ref := w.create("ks", "acme", "1", func(d *events.KeyCreated) {
		d.Scopes, d.Roles, d.Resources, d.Allowlist = []string{"write"}, []events.RoleID{"dev"}, someResources, somePrefixes[:3]
		d.Limit, d.ExpiresAt = &keyspace.Limit{Plan: "gold"}, 1_900_000_000_000
	})
	w.add(ref.Aggregate(), &events.KeyRotated{Successor: ref.Key, Before: 1_900_000_000_000, After: 1_900_000_000_000})
	w.tenantLimit("ks", "acme", &keyspace.Limit{Plan: "gold"})
	w.tenantLimit("ks", "keyless", &keyspace.Limit{PerMinute: 7, Burst: 8})
	w.tenantLimit("ks", "freed", &keyspace.Limit{PerMinute: 7, Burst: 8})
	w.tenantLimit("ks", "freed", nil)
	w.tenantLimit("early", "acme", &keyspace.Limit{PerMinute: 9, Burst: 9})
	w.create("early", "acme", "1", nil) // a keyspace without a definition, and a digest that is taken
	def := definition()
	def.Plans = nil
	def.TenantLimit = &keyspace.Limit{PerMinute: 70, Burst: 80}
	def.Checks = []keyspace.Check{keyspace.CheckAddress, keyspace.CheckState, keyspace.CheckScope, keyspace.CheckResource, keyspace.CheckLimit}
	def.Resources, def.Scopes[0].Level = []string{"project"}, "project"
	def.KeyTypes[0].Checksum, def.HTTPSOnly = keyspace.CRC32, true
	def.Errors.Envelope = jsontext.Value(`{"code":"{code}"}`)
	def.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"rate_limited"}, Status: 430, Code: "slow"}}
	w.define("ks", def)
	if err := v.Apply(w.log); err != nil {
		t.Fatal(err)
	}
	return w, v
}

func snapshot(t testing.TB, v View) []byte {
	var buf bytes.Buffer
	if _, err := v.Snapshot(&buf, testLog); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// What is loaded goes on as what was saved would have: the tenants with their
// limits and their histories, and the rules with what they work out in advance.
func TestSnapshotKeepsTenantsAndRules(t *testing.T) {
	w, v := rich(t)
	n := reloadAnywhere(t, v)
	for _, ks := range []events.KeyspaceID{"ks", "early"} {
		was, is := v.space(ks), n.space(ks)
		if a, b := &was.Rules().Compiled, &is.Rules().Compiled; ks == "ks" && (!reflect.DeepEqual(a, b) || was.formal.Load() != is.formal.Load()) {
			t.Errorf("%s: %+v, want %+v", ks, b, a)
		}
		for _, tenant := range []events.TenantID{"acme", "keyless", "freed"} {
			a, b := v.tenants.at(v.tenant(was, tenant)), n.tenants.at(n.tenant(is, tenant))
			if !reflect.DeepEqual(a.state, b.state) || !reflect.DeepEqual(a.limit.Load(), b.limit.Load()) {
				t.Errorf("%s/%s: %+v, want %+v", ks, tenant, b.state, a.state)
			}
		}
	}
	for i, want := range [][3]int64{{60, 10, 1}, {9, 9, 1}} {
		k := byID(n, w.refs[i].Key)
		if perMinute, burst, _ := k.Whole.Limit(&k.Rules.Compiled); [3]int64{perMinute, burst, 1} != want {
			t.Errorf("key %d: %d a minute, burst %d", i, perMinute, burst)
		}
	}
	w.tenantLimit("ks", "freed", &keyspace.Limit{PerMinute: 1, Burst: 1})
	w.tenantLimit("ks", "keyless", nil)
	apply(t, n, w)
}

// TestSnapshotRefusesAnyOther flips every bit of a snapshot and cuts it at every
// length: none of them may be taken for a snapshot, and each error says enough.
func TestSnapshotRefusesAnyOther(t *testing.T) {
	w, v := rich(t)
	refusesAnyOther(t, v, keysMagic, LoadKeys)
	d := NewDirectory()
	if err := d.Apply(w.log); err != nil {
		t.Fatal(err)
	}
	refusesAnyOther(t, d, directoryMagic, LoadDirectory)
	if _, err := LoadDirectory(bytes.NewReader(snapshot(t, v)), testLog); err == nil || !strings.Contains(err.Error(), "not a snapshot of the directory") {
		t.Errorf("a snapshot of another view: %v", err)
	}
}

func refusesAnyOther[V View](t *testing.T, v V, magic string, read func(io.Reader, events.LogID) (V, error)) {
	good := snapshot(t, v)
	load := func(r io.Reader, log events.LogID) error {
		_, err := read(r, log)
		return err
	}
	if err := load(iotest.OneByteReader(bytes.NewReader(good)), testLog); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if err := load(bytes.NewReader(bad), testLog); err == nil {
				t.Fatalf("bit %d of byte %d of %d does not matter", bit, i, len(good))
			}
		}
		if err := load(bytes.NewReader(good[:i]), testLog); err == nil || !strings.Contains(err.Error(), "cut short") {
			t.Fatalf("cut to %d of %d bytes: %v", i, len(good), err)
		}
	}
	version := bytes.Clone(good)
	version[len(magic)] = snapshotVersion + 1
	for want, in := range map[string]io.Reader{
		"not a snapshot": strings.NewReader(strings.Repeat("x", 100)),
		fmt.Sprintf("version %d", snapshotVersion+1): bytes.NewReader(version),
		"damaged":          io.MultiReader(bytes.NewReader(good), strings.NewReader("x")),
		"cut short":        strings.NewReader(""),
		"no route to disk": iotest.ErrReader(errors.New("no route to disk")),
	} {
		if err := load(in, testLog); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that says %q", err, want)
		}
	}
	if err := load(bytes.NewReader(good), events.LogID{9}); err == nil || !strings.Contains(err.Error(), "this log is") {
		t.Errorf("a snapshot of another log: %v", err)
	}
}

func FuzzLoadKeys(f *testing.F) {
	w, v := rich(f)
	good := snapshot(f, v)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(binary.AppendUvarint([]byte(keysMagic), snapshotVersion))
	f.Fuzz(func(t *testing.T, data []byte) {
		// With and without a right sum, so that the fuzzer gets past it.
		for _, in := range [][]byte{data, withSum(data)} {
			v, err := LoadKeys(bytes.NewReader(in), testLog)
			if err != nil {
				continue
			}
			for slot := range v.records.n { // whatever was let in answers
				var k Key
				v.read(slot, &k)
				k.Limit(&k.Rules.Compiled)
				k.Scopes()
				k.Whole.Limit(&k.Rules.Compiled)
				k.HasScope("read")
				k.AllowsAddr(someAddrs[1])
				k.AllowsResource(someResources[0])
			}
			v.Apply(w.log)
		}
	})
}

func FuzzLoadDirectory(f *testing.F) {
	w, _ := rich(f)
	d := NewDirectory()
	if err := d.Apply(w.log); err != nil {
		f.Fatal(err)
	}
	good := snapshot(f, d)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(binary.AppendUvarint([]byte(directoryMagic), snapshotVersion))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, in := range [][]byte{data, withSum(data)} {
			d, err := LoadDirectory(bytes.NewReader(in), testLog)
			if err != nil {
				continue
			}
			n, err := LoadDirectory(bytes.NewReader(snapshot(t, d)), testLog)
			if err != nil || n.Len() != d.Len() || n.At() != d.At() {
				t.Errorf("what was let in cannot be saved and loaded again: %v", err)
			}
			for ref := range w.refs { // whatever was let in answers
				d.Key(w.refs[ref].Key)
			}
			d.List(ListQuery{Limit: 10})
			d.Keyspaces()
			d.Apply(w.log)
		}
	})
}

// withSum replaces the last 32 bytes by the sum of those before.
func withSum(data []byte) []byte {
	body := data[:max(0, len(data)-sha256.Size)]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

func TestSaveFileKeepsThree(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	for i := range 5 {
		w.create("ks", "acme", fmt.Sprint(i), nil)
		apply(t, v, w)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".keys-crashed.tmp"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Save(t.Context(), dir, v, testLog); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != KeepSnapshots {
		t.Fatalf("%d files, want %d: %v", len(files), KeepSnapshots, err)
	}
	load := func(wantAt events.Seq, wantRefused int) {
		t.Helper()
		v, refused, err := RestoreKeys(dir, testLog, 6)
		if err != nil {
			t.Fatal(err)
		}
		if v.Resume() != wantAt || len(refused) != wantRefused {
			t.Errorf("at %d with %d refused (%v), want %d with %d", v.Resume(), len(refused), refused, wantAt, wantRefused)
		}
		apply(t, v, w)
		if v.Len() != 5 {
			t.Errorf("%d keys", v.Len())
		}
	}
	load(6, 0)
	if _, _, err := RestoreKeys(dir, testLog, 5); !errors.As(err, new(*events.CorruptError)) {
		t.Errorf("a log that ends before its snapshot: %v", err)
	}
	for i, path := range snapshotFiles(dir, "keys") {
		if err := os.Truncate(path, 60); err != nil {
			t.Fatal(err)
		}
		load([]events.Seq{5, 4, 0}[i], i+1)
	}
}

// A snapshot that is being written shows its own position, whatever the fold changes
// meanwhile.
func TestPictureStandsStill(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	w.role("ks", "acme", "dev", "read")
	w.role("ks", "acme", "ops", "write")
	for i := range 50 {
		w.create("ks", "acme", fmt.Sprint(i%45), func(d *events.KeyCreated) { // five of them do not own their digest
			d.Roles, d.Resources = [][]events.RoleID{nil, {"dev"}, {"dev", "ops"}}[i%3], someResources[:i%3]
		})
	}
	apply(t, v, w)
	want := export(t, v)
	first, second := v.picture(), v.picture()
	for i, ref := range w.refs {
		a := ref.Aggregate()
		w.add(a, []events.Data{&events.KeyScopesAssigned{Before: w.key(ref).Grant}, &events.KeyExpiryChanged{After: w.now + 10_000}, &events.KeyRenamed{Before: w.key(ref).Label, After: events.Label{Name: "x"}}}[i%3])
		w.add(a, &events.KeyRevoked{Code: events.RevokeCompromise})
	}
	w.create("ks", "other", "new", nil)
	w.create("ks", "other", "1", nil)
	w.role("ks", "acme", "dev", "write")
	w.tenantLimit("ks", "acme", &keyspace.Limit{Plan: "gold"})
	w.define("ks", definition())
	apply(t, v, w)
	for _, p := range []*picture{first, second} {
		p.memory.recent = nil
		var got bytes.Buffer
		if _, err := p.write(&got, testLog); err != nil {
			t.Fatal(err)
		}
		if p.close(); !bytes.Equal(got.Bytes(), want) {
			t.Error("the snapshot shows something of what came after it")
		}
	}
	if len(v.pictures) != 0 {
		t.Error("the fold still keeps what changes")
	}
	if bytes.Equal(export(t, v), want) {
		t.Error("nothing has changed")
	}
}
