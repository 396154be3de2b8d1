package events

import (
	"bytes"
	"testing"
	"time"
)

func testLease() NodeLease {
	log, _ := ParseLogID("01JGY7Q3S8T9V0W1X2Y3Z4A5B6")
	return NodeLease{Node: "n-1", Instance: NewInstanceID(time.UnixMilli(1)), State: LeaseLive, LifeMS: 10_000, Floor: 7,
		Applied: Head{Log: log, Size: 12, Root: Hash{1, 2}}, Decisions: 1 << 40}
}

func TestLeaseRoundTrip(t *testing.T) {
	for _, change := range []func(*NodeLease){
		func(*NodeLease) {},
		func(l *NodeLease) { l.State, l.Applied.Root, l.Floor, l.Decisions = LeaseEnded, Hash{}, 0, 0 },
		func(l *NodeLease) { l.Applied.Size, l.Decisions = 1<<64-1, 1<<64-1 },
	} {
		want := testLease()
		change(&want)
		data, err := EncodeLease(&want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeLease(data); err != nil || got != want {
			t.Errorf("%s: %+v, %v", data, got, err)
		}
	}
}

// TestRecordsOfALaterRelease: a rolling upgrade puts records in the log of leases
// that have members of the next release.
func TestRecordsOfALaterRelease(t *testing.T) {
	later := func(b []byte) []byte {
		return append(bytes.Clone(b[:len(b)-1]), `,"shares":{"a":[1,{}]},"zone":"b"}`...)
	}
	lease := testLease()
	data, err := EncodeLease(&lease)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeLease(later(data)); err != nil || got != lease {
		t.Errorf("%s: %+v, %v", later(data), got, err)
	}
	floor := Floor{Head: Head{Log: LogID{1}, Size: 7, Root: Hash{2}}, Release: "2.1"}
	if data, err = EncodeFloor(&floor); err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeFloor(later(data)); err != nil || got != floor {
		t.Errorf("%s: %+v, %v", later(data), got, err)
	}
}

// sameButLater reports whether data is the record printed, but for members after it.
func sameButLater(printed, data []byte) bool {
	printed = printed[:len(printed)-1]
	return bytes.HasPrefix(data, printed) && bytes.IndexByte([]byte(",}"), data[len(printed)]) >= 0
}

func TestDecodeLeaseIsStrict(t *testing.T) {
	lease := testLease()
	good, err := EncodeLease(&lease)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"empty":          nil,
		"a space":        append([]byte(" "), good...),
		"more after it":  append(bytes.Clone(good), '{', '}'),
		"another member": bytes.Replace(good, []byte(`"node"`), []byte(`"x":1,"node"`), 1),
		"a member twice": bytes.Replace(good, []byte(`"state"`), []byte(`"state":"live","state"`), 1),
		"another case":   bytes.Replace(good, []byte(`"node"`), []byte(`"Node"`), 1),
		"no life":        bytes.Replace(good, []byte(`10000`), []byte(`0`), 1),
		"a long life":    bytes.Replace(good, []byte(`10000`), []byte(`86400001`), 1),
		"another state":  bytes.Replace(good, []byte(`live`), []byte(`lives`), 1),
		"another node":   bytes.Replace(good, []byte(`n-1`), []byte(`n.1`), 1),
	} {
		if bytes.Equal(bad, good) {
			t.Fatalf("%s: nothing was changed in %s", name, good)
		}
		if l, err := DecodeLease(bad); err == nil {
			t.Errorf("%s: read %+v from %s", name, l, bad)
		}
	}
}

func FuzzDecodeLease(f *testing.F) {
	lease := testLease()
	data, _ := EncodeLease(&lease)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := DecodeLease(data)
		if err != nil {
			return
		}
		if l.Validate() != nil {
			t.Errorf("%s: read as %+v, which is none", data, l)
		}
		if again, err := EncodeLease(&l); err != nil || !sameButLater(again, data) {
			t.Errorf("%s: printed as %s, %v", data, again, err)
		}
	})
}

func FuzzDecodeFloor(f *testing.F) {
	floor := Floor{Head: Head{Log: LogID{1}, Size: 7, Root: Hash{2}}, Release: "2.1"}
	data, _ := EncodeFloor(&floor)
	f.Add(data)
	f.Add(bytes.Replace(data, []byte("2.1"), []byte("next"), 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeFloor(data)
		if err != nil {
			return
		}
		if again, err := EncodeFloor(&got); err != nil || !sameButLater(again, data) {
			t.Fatalf("accepted, and printed as %s", again)
		}
	})
}

func FuzzDecodeHead(f *testing.F) {
	head := testLease().Applied
	data, _ := EncodeHead(&head)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := DecodeHead(data)
		if err != nil {
			return
		}
		if again, err := EncodeHead(&h); err != nil || !sameButLater(again, data) {
			t.Errorf("%s: printed as %s, %v", data, again, err)
		}
	})
}
