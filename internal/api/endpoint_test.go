package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

type body struct {
	Name  string            `json:"name"`
	Count int64             `json:"count"`
	Flag  bool              `json:"flag"`
	List  []events.Resource `json:"list"`
	Few   []int             `json:"few"`
	Names *[]string         `json:"names"`
	Tags  map[string]string `json:"tags"`

	Reason   string            `json:"reason"`
	Metadata map[string]string `json:"metadata"`
	ID       events.KeyID      `json:"id"`
	Any      jsontext.Value    `json:"any"`
	Maybe    maybe             `json:"maybe"`
}

type maybe struct{ set bool }

func (*maybe) AcceptsNull() {}

func (m *maybe) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	m.set = true
	return dec.SkipValue()
}

// serve sends the request to an open endpoint that decodes a body, and returns
// the answer and what was decoded.
func serve(t testing.TB, r *http.Request) (*httptest.ResponseRecorder, *body) {
	t.Helper()
	var got *body
	mux := http.NewServeMux()
	HandleOpen(mux, Endpoint{Pattern: "POST /x", Body: RequiredBody, Bounds: Bounds{Lists: map[string]int{"few": 2}}}, func(w http.ResponseWriter, r *Request) error {
		got = new(body)
		return r.Decode(got)
	})
	w := httptest.NewRecorder()
	Handler(mux).ServeHTTP(w, r)
	return w, got
}

func post(contentType, body string) *http.Request {
	r := httptest.NewRequest("POST", "/x", strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

const jsonType = "application/json"

func TestDecodeNamesTheFault(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, body string
		status                  int
		code, field             string
	}{
		{"right", jsonType, `{"name":"a","count":1}`, 200, "", ""},
		{"with a charset", "application/json; charset=utf-8", `{}`, 200, "", ""},
		{"with a charset in capitals", `application/json; charset="UTF-8"`, `{}`, 200, "", ""},
		{"without a content type", "", `{}`, 200, "", ""},
		{"a form", "application/x-www-form-urlencoded", `{}`, 415, "unsupported_media_type", ""},
		{"another charset", "application/json; charset=utf-16", `{}`, 415, "unsupported_media_type", ""},
		{"another parameter", "application/json; profile=x", `{}`, 415, "unsupported_media_type", ""},
		{"half a content type", "application/json; charset", `{}`, 415, "unsupported_media_type", ""},
		{"empty", jsonType, "", 400, "bad_body", ""},
		{"white space", jsonType, " \n", 400, "bad_body", ""},
		{"cut off", jsonType, `{"name":`, 400, "bad_body", ""},
		{"two values", jsonType, `{} {}`, 400, "bad_body", ""},
		{"bad UTF-8", jsonType, "{\"name\":\"\xff\"}", 400, "bad_body", ""},
		{"UTF-16", jsonType, "{\x00}\x00", 400, "bad_body", ""},
		{"repeated", jsonType, `{"name":"a","name":"b"}`, 400, "bad_body", ""},
		{"repeated behind an escape", jsonType, `{"name":"a","n\u0061me":"b"}`, 400, "bad_body", ""},
		{"unknown", jsonType, `{"nmae":"a"}`, 422, "unknown_field", "nmae"},
		{"another case", jsonType, `{"Name":"a"}`, 422, "unknown_field", "Name"},
		{"wrong type", jsonType, `{"count":"1"}`, 422, "invalid", "count"},
		{"a fraction", jsonType, `{"count":1.5}`, 422, "invalid", "count"},
		{"a whole number with a fraction", jsonType, `{"count":60.0}`, 422, "invalid", "count"},
		{"an exponent", jsonType, `{"count":1e2}`, 422, "invalid", "count"},
		{"too large a number", jsonType, `{"count":9223372036854775808}`, 422, "invalid", "count"},
		{"a text for a boolean", jsonType, `{"flag":"true"}`, 422, "invalid", "flag"},
		{"deep inside", jsonType, `{"list":[{"kind":"a","id":"b"},{"kind":1}]}`, 422, "invalid", "list[1].kind"},
		{"a text that guards itself", jsonType, `{"id":"key_1"}`, 422, "invalid", "id"},
		{"null for a text", jsonType, `{"name":null}`, 422, "invalid", "name"},
		{"null for a number", jsonType, `{"count":null}`, 422, "invalid", "count"},
		{"null for a list", jsonType, `{"list":null}`, 422, "invalid", "list"},
		{"null for a list that may be absent", jsonType, `{"names":null}`, 422, "invalid", "names"},
		{"null in a list", jsonType, `{"names":["a",null]}`, 422, "invalid", "names[1]"},
		{"null deep in a list", jsonType, `{"list":[{"kind":null,"id":"b"}]}`, 422, "invalid", "list[0].kind"},
		{"null in a map", jsonType, `{"tags":{"a":null}}`, 422, "invalid", "tags.a"},
		{"null for an id", jsonType, `{"id":null}`, 422, "invalid", "id"},
		{"null for all", jsonType, `null`, 422, "invalid", ""},
		{"null where it is a value", jsonType, `{"maybe":null,"any":null}`, 200, "", ""},
		{"an empty text", jsonType, `{"name":""}`, 422, "empty", "name"},
		{"an empty text in a list", jsonType, `{"names":["a",""]}`, 422, "empty", "names[1]"},
		{"an empty text deep inside", jsonType, `{"list":[{"kind":"","id":"b"}]}`, 422, "empty", "list[0].kind"},
		{"an empty value in a map", jsonType, `{"tags":{"a":""}}`, 422, "empty", "tags.a"},
		{"several at once", jsonType, `{"name":"","list":null,"count":null}`, 422, "empty", "name"},
		{"an empty text for people", jsonType, `{"reason":"","metadata":{"a":""},"name":"\""}`, 200, "", ""},
		{"the word null", jsonType, `{"name":"null"}`, 200, "", ""},
		{"too large", jsonType, `{"name":"` + strings.Repeat("a", MaxBody) + `"}`, 413, "body_too_large", ""},
		{"a list at its bound", jsonType, `{"few":[1,2]}`, 200, "", ""},
		{"a list above its bound", jsonType, `{"few":[1,2,3]}`, 422, "too_many", "few"},
		{"a list above its bound behind an escape", jsonType, `{"f\u0065w":[1,2,3]}`, 422, "too_many", "few"},
		{"a list of many", jsonType, `{"names":["a"` + strings.Repeat(`,"a"`, 9_999) + `]}`, 200, "", ""},
		{"a list of too many", jsonType, `{"names":["a"` + strings.Repeat(`,"a"`, 10_000) + `]}`, 422, "too_many", "names"},
		{"an object of too many", jsonType, `{"tags":{"x":""` + strings.Repeat(`,"a":""`, 1_000) + `}}`, 422, "too_many", "tags"},
		{"commas in a text", jsonType, `{"name":"` + strings.Repeat(`,\"[{`, 40) + `"}`, 200, "", ""},
		{"levels", jsonType, `{"any":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`, 200, "", ""},
		{"too many levels", jsonType, `{"any":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}`, 400, "bad_body", ""},
		{"nothing but levels", jsonType, strings.Repeat("[", MaxBody), 400, "bad_body", ""},
		{"too many values", jsonType, `{"any":[` + strings.TrimSuffix(strings.Repeat("["+strings.Repeat("0,", 50)+"0],", 2_000), ",") + `]}`, 422, "too_many_values", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := serve(t, post(tt.contentType, tt.body))
			if w.Code != tt.status {
				t.Fatalf("%d %s, want %d", w.Code, w.Body, tt.status)
			}
			if tt.status == 200 {
				return
			}
			p := readProblem(t, w)
			code, field := p.Code, ""
			if len(p.Errors) > 0 {
				code, field = p.Errors[0].Code, p.Errors[0].Field
			}
			if code != tt.code || field != tt.field {
				t.Errorf("got %s at %q, want %s at %q: %s", code, field, tt.code, tt.field, w.Body)
			}
		})
	}
}

func readProblem(t testing.TB, w *httptest.ResponseRecorder) (p Problem) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &p, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return p
}

// TestMessagesSayWhatIsAccepted: the sentence names the form, and what came.
func TestMessagesSayWhatIsAccepted(t *testing.T) {
	for body, want := range map[string]string{
		`{"count":60.0}`:  "want an integer without fraction or exponent, as 60",
		`{"count":"60"}`:  "want an integer without fraction or exponent, as 60, not a string",
		`{"names":"a"}`:   "want a list, not a string",
		`{"tags":["a"]}`:  "want an object, not a list",
		`{"list":["a"]}`:  "want an object, not a string",
		`{"flag":1}`:      "want true or false",
		`{"name":null}`:   "null is no value here: want a value, or leave the member out",
		`{"few":[0,0,0]}`: "want at most 2 elements",
	} {
		w, _ := serve(t, post(jsonType, body))
		if p := readProblem(t, w); len(p.Errors) != 1 || p.Errors[0].Message != want {
			t.Errorf("%s: %+v, want %q", body, p.Errors, want)
		}
	}
}

func TestBodyIsReadAsItStands(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"gzip":                  func(r *http.Request) { r.Header.Set("Content-Encoding", "gzip") },
		"an empty encoding":     func(r *http.Request) { r.Header.Set("Content-Encoding", "") },
		"two content types":     func(r *http.Request) { r.Header.Add("Content-Type", jsonType) },
		"an empty content type": func(r *http.Request) { r.Header.Set("Content-Type", "") },
	} {
		r := post(jsonType, `{}`)
		change(r)
		if w, got := serve(t, r); w.Code != 415 || got != nil {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	r := post(jsonType, `{}`)
	r.Header.Set("Content-Encoding", "identity")
	if w, _ := serve(t, r); w.Code != 200 {
		t.Errorf("identity: %d %s", w.Code, w.Body)
	}
	r = post(jsonType, "")
	r.Body, r.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader(`{"na`), strings.NewReader(`me":"a"}`))), -1
	if w, got := serve(t, r); w.Code != 200 || got.Name != "a" {
		t.Errorf("chunked: %d %s", w.Code, w.Body)
	}
}

func TestQueryIsReadStrictly(t *testing.T) {
	for _, tt := range []struct{ raw, status, field string }{
		{"", "", ""},
		{"a=1&b=2", "", ""},
		{"a=%20", "", ""},
		{"a=true;", "bad_query", ""},
		{"a=true%", "bad_query", ""},
		{"a=1;b=2", "bad_query", ""},
		{"a=%zz", "bad_query", ""},
		{"a=", "empty", "a"},
		{"a", "empty", "a"},
		{"a=1&a=1", "repeated", "a"},
		{"a=%ff", "invalid", "a"},
		{"c=1", "unknown_parameter", "query"},
		{"A=1", "unknown_parameter", "query"},
		{"=1", "unknown_parameter", "query"},
		{"?a=1", "unknown_parameter", "query"},
		{"&&", "", ""},
		{strings.Repeat("c&", 100), "unknown_parameter", "query"},
		{strings.Repeat("c&", 101), "bad_query", ""}, // each parameter is compared with those before it
		{strings.Repeat("&", 1000) + "a=1", "", ""},
	} {
		q, err := ParseQuery(tt.raw, "a", "b")
		got, field := "", ""
		if p, ok := errors.AsType[*Problem](err); ok {
			got = p.Code
		} else if f, ok := errors.AsType[input.FieldErrors](err); ok {
			got, field = f[0].Code, f[0].Field
		} else if err != nil {
			t.Fatal(err)
		}
		if got != tt.status || field != tt.field {
			t.Errorf("%q: %q %q, want %q %q (%v)", tt.raw, got, field, tt.status, tt.field, q)
		}
	}
}

// gate knows one bearer, whose power may change while a body arrives.
type gate struct {
	mu    sync.Mutex
	scope []string
	calls int
}

func (g *gate) FindSecret(text string) (start, end int, ok bool) { return 0, 0, false }

func (g *gate) Knows(r *http.Request) bool { return r.Header.Get("Authorization") == "Bearer one" }

func (g *gate) Authenticate(r *http.Request, scope, _ string) (*Caller, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls++
	if !g.Knows(r) {
		return new(Caller), Errorf(401, "key_unknown", "no")
	}
	c := NewCaller(events.Principal{Scopes: g.scope}, nil, nil)
	if !c.Principal.Has(scope) {
		return c, ScopeMissing(scope)
	}
	return c, nil
}

// unread fails the test when it is read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body of a stranger was read")
	return 0, io.EOF
}

func TestCallerIsAuthenticatedAfterTheBody(t *testing.T) {
	g := &gate{scope: []string{"s"}}
	mux, served := http.NewServeMux(), 0
	rs := &Routes{Mux: mux, Auth: g}
	rs.Handle(Endpoint{Pattern: "POST /x", Scope: "s", Query: "q", Body: OptionalBody}, func(w http.ResponseWriter, r *Request) error {
		served++
		return r.Decode(new(body))
	})
	rs.Handle(Endpoint{Pattern: "GET /y", Scope: "s"}, func(w http.ResponseWriter, r *Request) error { served++; return nil })
	do := func(method, target, bearer string, body io.Reader) int {
		r := httptest.NewRequest(method, target, body)
		r.Header.Set("Authorization", "Bearer "+bearer)
		w := httptest.NewRecorder()
		Handler(mux).ServeHTTP(w, r)
		return w.Code
	}
	// The caller is narrowed while its body is on the way.
	narrowed := func() io.Reader {
		return io.MultiReader(strings.NewReader("{"), readerFunc(func([]byte) (int, error) {
			g.mu.Lock()
			g.scope = nil
			g.mu.Unlock()
			return 0, io.EOF
		}), strings.NewReader("}"))
	}
	if got := do("POST", "/x", "one", narrowed()); got != 403 || served != 0 {
		t.Errorf("a caller narrowed while the body came: %d", got)
	}
	g.scope = []string{"s"}
	for _, tt := range []struct {
		method, target, body string
		status               int
	}{
		{"POST", "/x", "", 200},
		{"POST", "/x", "{}", 200},
		{"POST", "/x", " ", 400},
		{"POST", "/x?q=1", "{}", 200},
		{"POST", "/x?q=", "{}", 422},
		{"POST", "/x?z=1", "{}", 422},
		{"GET", "/y", "", 200},
		{"GET", "/y", "{}", 400},
		{"GET", "/y?q=1", "", 422},
		{"GET", "//y", "", 400},
		{"GET", "/x/../y", "", 400},
		{"GET", "/y/.", "", 400},
	} {
		served = 0
		if got := do(tt.method, tt.target, "one", strings.NewReader(tt.body)); got != tt.status {
			t.Errorf("%s %s %q: %d, want %d", tt.method, tt.target, tt.body, got, tt.status)
		}
	}
	g.calls = 0
	if got := do("POST", "/x?z=1", "two", unread{t}); got != 401 || g.calls != 1 {
		t.Errorf("a stranger: %d, recorded %d times", got, g.calls)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestEveryAnswerIsInert(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /x", func(w http.ResponseWriter, r *http.Request) {
		WriteJSON(w, r, 200, map[string]string{"a": "<script>&"})
	})
	mux.HandleFunc("GET /bad", func(w http.ResponseWriter, r *http.Request) { Write(w, r, Errorf(400, "x", "<script>&")) })
	for _, target := range []string{"/x", "/bad", "/none"} {
		w := httptest.NewRecorder()
		Handler(mux).ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		h := w.Header()
		if h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: headers %v", target, h)
		}
		if strings.ContainsAny(w.Body.String(), "<>&") {
			t.Errorf("%s: %s", target, w.Body)
		}
	}
}

// TestBodiesAreBoundedTogether: what many large bodies cost at once is bounded,
// and given back.
func TestBodiesAreBoundedTogether(t *testing.T) {
	mux := http.NewServeMux()
	const clients = 200
	var working sync.WaitGroup
	working.Add(clients)
	var first sync.Once
	held := make(chan struct{})
	HandleOpen(mux, Endpoint{Pattern: "POST /x", Body: RequiredBody, Bounds: Bounds{Lists: map[string]int{"requests": 100}}}, func(w http.ResponseWriter, r *Request) error {
		first.Do(func() { close(held) })
		working.Done()
		working.Wait() // until each client has been let in or refused
		return r.Decode(new(struct {
			Requests []struct{ A, B, C, D, E, F, G, H string } `json:"requests"`
		}))
	})
	one := []byte(`{"requests":[` + strings.TrimSuffix(strings.Repeat("{},", MaxBody/3-10), ",") + `]}`)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	status := make(chan int, clients)
	for i := range clients {
		go func() {
			r := httptest.NewRequest("POST", "/x", bytes.NewReader(one))
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if w.Code == 503 {
				working.Done()
			}
			status <- w.Code
		}()
		if i == 0 {
			<-held // of many at the same moment, each may find the others' bodies too large
		}
	}
	counts := map[int]int{}
	for range clients {
		counts[<-status]++
	}
	runtime.ReadMemStats(&after)
	if counts[422]+counts[503] != clients || counts[422] == 0 || counts[503] == 0 {
		t.Errorf("answers %v", counts)
	}
	if counts[422] > maxBodies/MaxBody {
		t.Errorf("%d bodies of %d bytes at once, beside a bound of %d", counts[422], len(one), maxBodies)
	}
	// Growing to a megabyte allocates two, and nothing is made of what was read.
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 2*clients*MaxBody {
		t.Errorf("%d bodies of %d bytes allocated %d bytes in all", clients, len(one), grown)
	}
	if n := bodies.open.taken.Load(); n != 0 {
		t.Errorf("%d bytes were not given back", n)
	}
}

// A buffer goes back with nothing in it, also one that was too small: bodies hold secrets.
func TestNothingOfABodyIsKept(t *testing.T) {
	for _, size := range []int{100, firstBuffer + 1, 5 * firstBuffer, firstBuffer << len(buffers), MaxBody + 1} {
		var seen [][]byte
		left := size
		r := post("", "")
		r.ContentLength = -1
		r.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
			if left == 0 {
				return 0, io.EOF
			}
			n := min(len(p), left)
			for i := range p[:n] {
				p[i] = 'x'
			}
			left -= n
			seen = append(seen, p)
			return n, nil
		}))
		var b requestBody
		b.read(r, &bodies.open)
		if len(b.text) != size {
			t.Fatalf("%d bytes of %d", len(b.text), size)
		}
		b.release()
		b.release()
		for i, p := range seen {
			if cap(p) <= firstBuffer<<(len(buffers)-2) && bytes.IndexByte(p, 'x') >= 0 {
				t.Errorf("of %d bytes, buffer %d still holds some", size, i)
			}
		}
		if n := bodies.open.taken.Load(); n != 0 {
			t.Errorf("of %d bytes, %d were not given back", size, n)
		}
	}
}

// TestStrangersBodiesKeepNobodyOut: while strangers hold all that their large bodies
// may take, a short question is read, and whatever an operator sends.
func TestStrangersBodiesKeepNobodyOut(t *testing.T) {
	if !bodies.open.take(maxBodies) {
		t.Fatal("something is taken already")
	}
	defer bodies.open.give(maxBodies)
	mux := http.NewServeMux()
	serve := func(w http.ResponseWriter, r *Request) error {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	HandleOpen(mux, Endpoint{Pattern: "POST /open", Body: RequiredBody}, serve)
	routes := Routes{Mux: mux, Auth: &gate{scope: []string{"x"}}}
	routes.Handle(Endpoint{Pattern: "POST /guarded", Scope: "x", Body: RequiredBody}, serve)
	short, large := `{"key":"`+strings.Repeat("x", 2000)+`"}`, `"`+strings.Repeat("x", MaxBody/2)+`"`
	for _, tt := range []struct {
		path, body string
		want       int
	}{
		{"/open", short, 204}, {"/open", large, 503}, {"/guarded", short, 204}, {"/guarded", large, 204},
	} {
		for _, length := range []int64{int64(len(tt.body)), -1} {
			r := httptest.NewRequest("POST", tt.path, strings.NewReader(tt.body))
			r.ContentLength = length
			r.Header.Set("Authorization", "Bearer one")
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if w.Code != tt.want {
				t.Errorf("%s with %d bytes, announced as %d: %d, want %d", tt.path, len(tt.body), length, w.Code, tt.want)
			}
		}
	}
	if n := bodies.known.taken.Load(); n != 0 {
		t.Errorf("%d bytes were not given back", n)
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte(`{"a":[1,2,{"b":null}],"few":[1,2,3]}`))
	f.Add([]byte(`{"f\u0065w":[[],[],[]]}`))
	f.Add([]byte(`"\`))
	f.Add([]byte(`]]}}[,,`))
	bounds := &Bounds{Items: 4, Lists: map[string]int{"few": 2}}
	f.Fuzz(func(t *testing.T, b []byte) {
		blanks, err := bounds.scan(b)
		// The naive twin: decode all of it, then measure.
		var v any
		if json.Unmarshal(b, &v) != nil {
			return // what is not JSON is the decoder's to refuse
		}
		n, has := measure(v, 0, "", bounds)
		strict := bytes.IndexByte(b, '\\') >= 0 // an escaped name gets the strictest bound
		if n && err == nil || !n && err != nil && !strict || err == nil && has && !blanks {
			t.Errorf("%q: %v, blanks %v; beyond the bounds %v, blanks %v", b, err, blanks, n, has)
		}
	})
}

// measure reports whether the value is beyond the bounds, and whether it holds a
// null or an empty string.
func measure(v any, depth int, name string, bounds *Bounds) (beyond, blank bool) {
	most := bounds.Items
	if n, ok := bounds.Lists[name]; ok && depth == 1 {
		most = n
	}
	each := func(name string, v any) {
		b, n := measure(v, depth+1, name, bounds)
		beyond, blank = beyond || b, blank || n
	}
	switch v := v.(type) {
	case nil:
		blank = true
	case string:
		blank = v == ""
	case []any:
		beyond = len(v) > most || depth == maxDepth
		for _, x := range v {
			each("", x)
		}
	case map[string]any:
		beyond = len(v) > maxMembers || depth == maxDepth
		for k, x := range v {
			each(k, x)
		}
	}
	return beyond, blank
}

func BenchmarkDecode(b *testing.B) {
	text := []byte(`{"key":"sk_live_0123456789012345678901234567890123456789","keyspace":"scribe-sight","scope":"read","resource":{"kind":"project","id":"proj_1"},"ip":"203.0.113.7"}`)
	type question struct {
		Key, Keyspace, Scope, IP string
		Resource                 events.Resource
	}
	for name, bounds := range map[string]*Bounds{"scanned": {}, "bare": nil} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var q question
				var err error
				if bounds != nil {
					err = decode(text, &q, bounds)
				} else {
					err = json.Unmarshal(text, &q, strict)
				}
				_ = fmt.Sprint(err != nil)
			}
		})
	}
}
