package limits

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

var (
	sampleAsk = ask{Instance: events.InstanceID{1}, Number: 7, Buckets: []askBucket{
		{ID: ID{Key: events.KeyID{15: 1}}, Of: 6, Held: 3, Back: 2, Want: 5, Need: 1, Demand: 100},
		{ID: ID{Keyspace: "shop", Tenant: "acme"}}}}
	sampleAnswer = answer{Instance: events.InstanceID{1}, Number: 7, Buckets: []answerBucket{
		{Numbers: Numbers{PerMinute: 60, Burst: 10}, Tokens: 5, Owed: 60_000, Spare: 1, Wait: 20}, {}}}
)

func FuzzAsk(f *testing.F) {
	f.Add(encode(&sampleAsk))
	f.Add([]byte(`{"instance":"00000000000000000000000001","number":1,"buckets":[{"keyspace":"shop","tenant":"acme","key":""}]}`))
	f.Add([]byte(`{"instance":"00000000000000000000000001","number":1,"buckets":[{"held":-1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := decodeAsk(data)
		if err != nil {
			if err != errMessage {
				t.Errorf("%v: it may repeat what was read", err)
			}
			return
		}
		again, err := decodeAsk(encode(&q))
		if err != nil || !bytes.Equal(encode(&again), encode(&q)) {
			t.Errorf("%+v reads again as %+v, %v", q, again, err)
		}
		// Whatever was read, the account stays within what it may be.
		dir := &oneKey{id: events.KeyID{15: 1}}
		dir.limit.PerMinute, dir.limit.Burst = 60, 10
		a := newAllocator(dir, 0, 0)
		a.floor = 1
		if r, ok, _ := a.serve("n1", &q, 1); ok {
			for _, b := range r.Buckets {
				if b.Tokens > 10 || b.Tokens < 0 || b.Owed < 0 || b.Owed > 10*perToken {
					t.Errorf("%+v is answered %+v", q, b)
				}
			}
		}
		for _, b := range a.buckets {
			if b.leased < 0 || b.leased > 10 {
				t.Errorf("%+v: %d leased", q, b.leased)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(encode(&sampleAnswer))
	f.Add([]byte(`{"instance":"00000000000000000000000001","number":1,"buckets":[{"per_minute":0,"burst":1,"tokens":0,"owed":0}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decodeAnswer(data)
		if err != nil {
			if err != errMessage {
				t.Errorf("%v: it may repeat what was read", err)
			}
			return
		}
		again, err := decodeAnswer(encode(&a))
		if err != nil || !bytes.Equal(encode(&again), encode(&a)) {
			t.Errorf("%+v reads again as %+v, %v", a, again, err)
		}
	})
}

func TestMessagesReadBack(t *testing.T) {
	if q, err := decodeAsk(encode(&sampleAsk)); err != nil || !reflect.DeepEqual(q, sampleAsk) {
		t.Errorf("%+v, %v", q, err)
	}
	if a, err := decodeAnswer(encode(&sampleAnswer)); err != nil || !reflect.DeepEqual(a, sampleAnswer) {
		t.Errorf("%+v, %v", a, err)
	}
}

// FuzzHandover: an account that is read never makes a bucket that gives more than a burst.
func FuzzHandover(f *testing.F) {
	dir := &oneKey{id: events.KeyID{15: 1}}
	dir.limit.PerMinute, dir.limit.Burst = 60, 10
	a := newAllocator(dir, 0, 0)
	a.floor = 1
	a.serve("n1", &ask{Instance: events.InstanceID{1}, Number: 1, Buckets: []askBucket{{ID: dir.id0(), Want: 4}}}, 0)
	data, err := json.Marshal(a.account(events.InstanceID{2}, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"allocator":"00000000000000000000000001","after":0,"served":0,"buckets":[{"key":"","per_minute":0,"burst":-1,"owed":-5}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decodeHandover(data)
		if err != nil {
			if err != errHandover {
				t.Errorf("%v: it may repeat what was read", err)
			}
			return
		}
		a := resume(dir, h, time.Second)
		a.floor = 1
		r, ok, _ := a.serve("n1", &ask{Instance: events.InstanceID{1}, Number: 1, Buckets: []askBucket{{ID: dir.id0(), Want: maxNumber}}}, time.Second)
		if !ok || len(r.Buckets) != 1 || r.Buckets[0].Tokens < 0 || r.Buckets[0].Tokens > 10 || !r.valid() {
			t.Errorf("%s is answered %+v", data, r)
		}
	})
}
