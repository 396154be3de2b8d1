package verifier

import (
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/internal/api"
)

// strictQuestion and strictBatch are read by the strict reader alone.
type (
	strictQuestion question
	strictBatch    batch
)

var plainQuestions = []string{
	`{}`,
	` { } `,
	`{"key":"sk_live_x"}`,
	`{"key":"k","keyspace":"scribe-sight","scope":"read","resource":{"kind":"project","id":"proj_1"},"ip":"203.0.113.7"}`,
	"{\n\t\"resource\" : { \"id\" : \"a\" ,\r\n \"kind\":\"b\" } , \"scheme\":\"https\",\"max_staleness\":\"5s\", \"min_position\":\"x\" }\n",
}

var otherQuestions = []string{
	``, ` `, `{`, `{}x`, "{}\x00", `[]`, `null`, `{"key":""}`, `{"key":null}`, `{"key":1}`, `{"key":"a","key":"b"}`, `{"keys":"a"}`, `{"":"a"}`,
	`{"key":"a",}`, `{,"key":"a"}`, `{"key" "a"}`, `{"key":"a""scope":"b"}`, `{"key":"a\n"}`, `{"key":"\u0061"}`, `{"key":"ä"}`, "{\"key\":\"a\x7f\"}", "{\"key\":\"a\tb\"}",
	`{"scope":""}`, `{"resource":{}}`, `{"resource":{"kind":"a"}}`, `{"resource":{"kind":"a","kind":"b"}}`, `{"resource":{"kind":"a","id":"b","x":"c"}}`,
	`{"resource":{"kind":"a","id":"b",}}`, `{"resource":{"kind":"a" "id":"b"}}`, `{"resource":{"kind":"a","id":"b"},"resource":{"kind":"a","id":"b"}}`,
	`{"resource":"a"}`, `{"cost":1}`, `{"key":"a"`, `{"key":"a`, `{"KEY":"a"}`, `{:"a"}`, `{"key"}`, "\v{}",
}

// The plain reader takes what it is for, and gives anything else to the strict one.
func TestPlainQuestions(t *testing.T) {
	for _, text := range plainQuestions {
		if !new(question).ReadPlain([]byte(text)) {
			t.Errorf("%s is not plain", text)
		}
		if list := manyOf(text); !newBatch().ReadPlain([]byte(list)) {
			t.Errorf("%s is not plain", list)
		}
		plainLikeStrict(t, text)
	}
	for _, text := range otherQuestions {
		q := question{Key: "was"}
		if q.ReadPlain([]byte(text)) || q != (question{Key: "was"}) {
			t.Errorf("%s is plain, or left %+v", text, q)
		}
		b := newBatch()
		if b.ReadPlain([]byte(manyOf(text))) || len(b.plain) > 0 {
			t.Errorf("a batch with %s is plain", text)
		}
	}
	for text, want := range map[string]bool{
		`{"requests":[` + strings.Repeat(`{},`, MaxBatch-1) + `{}]}`: true, `{"requests":[` + strings.Repeat(`{},`, MaxBatch) + `{}]}`: false,
		`{"requests":[]}`: false, `{"requests":{}}`: false, `{"requests":[{}],"requests":[{}]}`: false, `{"requests":[{}]}{}`: false, `{"Requests":[{}]}`: false,
		`{"requests":[{}{}]}`: false, `{"requests":[{},]}`: false, `{"requests":[{}`: false, ` {"requests" : [ {} , {} ] } `: true,
	} {
		if got := newBatch().ReadPlain([]byte(text)); got != want {
			t.Errorf("%.40s: plain is %t, want %t", text, got, want)
		}
	}
}

// FuzzPlain: whatever is plain, the strict reader takes too, with the same result.
func FuzzPlain(f *testing.F) {
	for _, text := range slices.Concat(plainQuestions, otherQuestions) {
		f.Add(text)
		f.Add(manyOf(text))
	}
	f.Fuzz(func(t *testing.T, text string) { plainLikeStrict(t, text) })
}

func plainLikeStrict(t *testing.T, text string) {
	var q question
	if q.ReadPlain([]byte(text)) {
		var want strictQuestion
		if p := api.DecodeValue([]byte(text), &want); p != nil || !reflect.DeepEqual(q, question(want)) {
			t.Errorf("%q is plain: %+v; strictly %v %+v", text, q, p, want)
		}
	}
	b := newBatch()
	if !b.ReadPlain([]byte(text)) {
		return
	}
	var want strictBatch
	if p := api.DecodeValue([]byte(text), &want); p != nil || len(want.Requests) != len(b.plain) || len(b.plain) > MaxBatch {
		t.Fatalf("%q is plain: %d; strictly %v %d", text, len(b.plain), p, len(want.Requests))
	}
	for i, one := range want.Requests {
		var want strictQuestion
		if p := api.DecodeValue(one, &want); p != nil || !reflect.DeepEqual(b.plain[i], question(want)) {
			t.Errorf("%q is plain: %+v; strictly %v %+v", one, b.plain[i], p, want)
		}
	}
}

func newBatch() *batch { return &batch{plain: new(batchRoom).questions[:0]} }

func manyOf(question string) string { return `{"requests":[` + question + "," + question + "]}" }

// What a batch was read into goes back with nothing in it, whether its body is plain, is
// read strictly, or is refused half way.
func TestNothingOfABatchIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		w.heartbeat()
		was := batches.New
		defer func() { batches = sync.Pool{New: was} }()
		key := `{"key":"` + secretOf("plain") + `"}`
		for body, want := range map[string]int{manyOf(key): 200, manyOf(key + `,{"key":""}`): 200, `{"requests":[` + key + `,` + key + `],"x":1}`: 422} {
			room := new(batchRoom)
			batches = sync.Pool{New: func() any { return room }}
			rec := httptest.NewRecorder()
			w.mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify/batch", strings.NewReader(body)))
			if rec.Code != want {
				t.Errorf("%s: %d %s", body, rec.Code, rec.Body)
			}
			if !reflect.DeepEqual(room, new(batchRoom)) {
				t.Errorf("%s: something is left", body)
			}
		}
	})
}
