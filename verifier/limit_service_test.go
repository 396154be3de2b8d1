package verifier

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// allocator returns which process leases the tokens.
func (x *exactWorld) allocator() events.InstanceID {
	x.t.Helper()
	floor, err := x.nodes[0].Confirm(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	return floor.Allocator
}

// TestAnAllocatorThatAnswersStays: who may take over asks the allocator first, as itself: the
// asks of the node beside it are counted apart.
func TestAnAllocatorThatAnswersStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.allocate(0)
		first := x.allocator()
		for i := range 20 {
			word := fmt.Sprint("k", i)
			x.key(word, limited("small"))
			x.catchUp()
			if d := x.ask(1, word, 1); !d.Allowed() {
				t.Fatalf("%s %+v", d.Reason, d.Limit)
			}
		}
		x.allocate(1)
		if now := x.allocator(); now != first || first == (events.InstanceID{}) {
			t.Errorf("%s leases the tokens, and %s answered", now, first)
		}
	})
}

// TestAnAccountGoesOn: a process that was stopped in order hands its account over to the one
// that is started in its place: a bucket goes on where it was. One that was killed does not.
func TestAnAccountGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.key("a", limited("slow"))
		x.key("b", limited("slow"))
		kept := new(account)
		stop := x.allocateWith(0, kept)
		time.Sleep(time.Second)
		// The first allocator of all: no token was ever leased, so every bucket is full.
		for range 25 {
			if d := x.ask(0, "a", 1); !d.Allowed() {
				t.Fatalf("%s %+v", d.Reason, d.Limit)
			}
		}
		time.Sleep(3 * time.Second) // what lies at the node comes back
		stop()
		if len(kept.kept) == 0 {
			t.Fatal("no account")
		}
		saved := kept.kept
		time.Sleep(time.Minute)
		stop = x.allocateWith(1, kept)
		time.Sleep(time.Second)
		if n := x.spend(1, "a"); n != 15 {
			t.Errorf("%d of the 15 tokens that were left; nothing comes back between two processes", n)
		}
		if d := x.ask(1, "b", 30); !d.Allowed() {
			t.Errorf("a bucket that was full: %s %+v", d.Reason, d.Limit)
		}
		// Killed: nothing is kept, and the account of the one before is of no use.
		kept.save(nil)
		stop()
		kept.save(saved)
		stop = x.allocateWith(0, kept)
		time.Sleep(time.Second)
		if d := x.ask(0, "b", 1); d.Allowed() || !d.Limit.Away {
			t.Errorf("an account is used twice: %s %+v", d.Reason, d.Limit)
		}
		time.Sleep(5 * time.Second)
		if d := x.ask(0, "b", 1); d.Allowed() || d.Limit.Away {
			t.Errorf("a bucket nobody knows of is not empty: %s %+v", d.Reason, d.Limit)
		}
		stop()
		// One that is stopped while it waits has no account: the one before may still answer.
		kept.save(nil)
		stop = x.allocateWith(1, kept)
		time.Sleep(2 * time.Second) // it is appointed, and waits
		stop()
		if len(kept.kept) > 0 {
			t.Errorf("a process that waits has kept %s", kept.kept)
		}
		// One that cannot be read is none.
		for _, data := range []string{"{", `{"allocator":"` + x.allocator().String() + `","after":0,"served":0,"buckets":[{"key":"","per_minute":0,"burst":1,"owed":0}]}`} {
			kept.save([]byte(data))
			stop = x.allocateWith(0, kept)
			time.Sleep(time.Second)
			if d := x.ask(0, "b", 1); d.Allowed() {
				t.Errorf("after the account %s: %s", data, d.Reason)
			}
			stop()
		}
	})
}

// TestABatchAsksOnce: the allocator is asked for all items of a batch together.
func TestABatchAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.allocate(0)
		var items []string
		for i := range 100 {
			word := fmt.Sprint("k", i)
			x.key(word, limited("small"))
			items = append(items, fmt.Sprintf(`{"key":%q,"keyspace":%q,"cost":%d}`, secretOf(word), scribe, 1+i%5))
		}
		x.catchUp()
		asks := func() int {
			_, after, _ := strings.Cut(string(scrape(t, x.nodes[1])), "\nkeytrail_verifier_limit_asks_total ")
			text, _, _ := strings.Cut(after, "\n")
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		began := time.Now()
		before := asks()
		mux := http.NewServeMux()
		x.nodes[1].Routes(mux)
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify/batch", strings.NewReader(`{"requests":[`+strings.Join(items, ",")+`]}`)))
		body := rec.Body.String()
		if ok, never := strings.Count(body, `"allowed":true`), strings.Count(body, "it can never be allowed"); ok != 80 || never != 20 {
			t.Errorf("%d allowed, %d never: %s", ok, never, body)
		}
		if n := asks() - before; n > 6 { // the keys are new: its floor must include them first
			t.Errorf("the allocator was asked %d times within %s", n, time.Since(began))
		}
	})
}

// TestSoManyWait: of a flood on buckets whose tokens are not in hand so many requests wait, and
// all others have a clear answer at once.
func TestSoManyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.key("a", limited("small"))
		const more = 100
		var wg sync.WaitGroup
		answers := make(chan string, maxAwaiting+more)
		began := time.Now()
		for range maxAwaiting + more {
			wg.Go(func() {
				d := x.ask(0, "a", 1)
				text := detail(&d, &Request{})
				if d.Allowed() || d.Limit.RetryAfter != 1 || d.Status != http.StatusTooManyRequests {
					t.Errorf("%s %+v", d.Reason, d.Limit)
				}
				answers <- fmt.Sprint(time.Since(began) == 0, strings.Contains(text, "too many requests wait"))
			})
		}
		wg.Wait()
		close(answers)
		atOnce := 0
		for a := range answers {
			if a == "true true" {
				atOnce++
			} else if a != "false false" {
				t.Fatal(a)
			}
		}
		if took := time.Since(began); atOnce != more || took > askFor {
			t.Errorf("%d were refused at once, and the last after %s", atOnce, took)
		}
		if n := x.nodes[0].awaiting.Load(); n != 0 {
			t.Errorf("%d wait", n)
		}
		if !bytes.Contains(scrape(t, x.nodes[0]), fmt.Appendf(nil, "\nkeytrail_verifier_limit_turned_away_total %d\n", more)) {
			t.Error("the metrics do not say it")
		}
	})
}

// TestExactLimitsInEveryAnswer: each endpoint says where the whole bucket stands.
func TestExactLimitsInEveryAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		d := scribeDefinition()
		d.Limits, d.LimitHeaders.Style = keyspace.LimitsExact, keyspace.HeadersIETF
		d.Plans = []keyspace.Plan{{Name: "small", PerMinute: 60, Burst: 2}}
		x.define(scribe, d)
		x.allocate(0)
		n := x.nodes[1]
		mux := http.NewServeMux()
		n.Routes(mux)
		mux.Handle("/protected", n.Protect(scribe, nil)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		asked := func(method, target, body string) func(word string) *httptest.ResponseRecorder {
			return func(word string) *httptest.ResponseRecorder {
				r := httptest.NewRequest(method, target, strings.NewReader(strings.ReplaceAll(body, "KEY", secretOf(word))))
				if r.Header.Set("Authorization", "Bearer "+secretOf(word)); body != "" {
					r.Header.Del("Authorization")
				}
				rec := httptest.NewRecorder()
				mux.ServeHTTP(rec, r)
				return rec
			}
		}
		question := `{"key":"KEY","keyspace":"` + string(scribe) + `"}`
		for name, ask := range map[string]func(string) *httptest.ResponseRecorder{
			"verify":    asked("POST", "/v1/verify", question),
			"batch":     asked("POST", "/v1/verify/batch", `{"requests":[`+question+`]}`),
			"authorize": asked("GET", "/v1/authorize/"+string(scribe), ""),
			"protect":   asked("GET", "/protected", ""),
		} {
			x.key(name, limited("small"))
			x.catchUp()
			if d := x.ask(0, name, 1); !d.Allowed() { // at another node
				t.Fatalf("%s: %s %+v", name, d.Reason, d.Limit)
			}
			time.Sleep(300 * time.Millisecond)
			for i, want := range []struct {
				status             int
				limit, retry, body string
			}{
				{200, `"default";r=0;t=2`, "", `"limit":{"limit":2,"remaining":0,"reset":2,"scope":"key","mode":"exact"}`},
				{429, `"default";r=0;t=2`, "1", `"limit":{"limit":2,"remaining":0,"reset":2,"scope":"key","mode":"exact"},"retry_after":1`},
			} {
				rec := ask(name)
				if name == "verify" || name == "batch" {
					if !strings.Contains(rec.Body.String(), want.body) {
						t.Errorf("%s, %d: %s", name, i, rec.Body)
					}
					continue
				}
				h := rec.Header()
				said := map[string][]string(h) // in their own spelling
				if rec.Code != want.status || !slices.Equal(said["RateLimit"], []string{want.limit}) || !slices.Equal(said["RateLimit-Policy"], []string{`"default";q=2;w=2`}) || h.Get("Retry-After") != want.retry {
					t.Errorf("%s, %d: %d %v", name, i, rec.Code, h)
				}
			}
		}
	})
}
