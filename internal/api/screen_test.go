package api

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// knowing is a gate that knows one key type and one secret of another issuer.
type knowing struct{ gate }

const foreign = "a-secret-without-form"

func (*knowing) FindSecret(text string) (start, end int, ok bool) {
	rules := slices.Values([]*keyspace.Compiled{keyspace.Compile(keyspace.Definition{KeyTypes: []keyspace.KeyType{{Prefix: "sk_live_"}}}, nil)})
	return events.FindSecret(text, rules, func(d events.Digest) bool { return d == events.NewSecret(foreign).Digest() })
}

// TestSecretsDoNotComeIn: wherever an endpoint reads text, a secret is refused
// before the endpoint sees it, its place is named, and nothing of it is repeated.
func TestSecretsDoNotComeIn(t *testing.T) {
	mux := http.NewServeMux()
	served := 0
	rs := &Routes{Mux: mux, Auth: &knowing{gate{scope: []string{"s"}}}}
	rs.Handle(Endpoint{Pattern: "PUT /v1/things/{thing}/of/{owner}", Scope: "s", Query: "name", Body: OptionalBody}, func(w http.ResponseWriter, r *Request) error {
		served++
		w.WriteHeader(204)
		return nil
	})
	send := func(path, body string, header ...string) (int, *Problem) {
		r := httptest.NewRequest("PUT", path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer one")
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		var p Problem
		if w.Body.Len() > 0 {
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
				t.Fatalf("%s: %v", w.Body, err)
			}
		}
		return w.Code, &p
	}
	if code, p := send("/v1/things/a/of/b?name=c", `{"d":"e","f":["a word, and more words"]}`, "Idempotency-Key", "f"); code != 204 || served != 1 {
		t.Fatal(code, p)
	}
	for _, s := range []string{"sk_live_" + strings.Repeat("0aB", 10) + "xy", foreign} {
		served = 1
		var escaped strings.Builder
		for _, c := range s {
			escaped.WriteString(`\u00` + "0123456789abcdef"[c>>4:c>>4+1] + "0123456789abcdef"[c&15:c&15+1])
		}
		for _, tt := range []struct {
			path, body, field string
			header            []string
		}{
			{"/v1/things/" + s + "/of/b", "", "thing", nil},
			{"/v1/things/a/of/x-" + s, "", "owner", nil},
			{"/v1/things/a/of/b?name=%20" + s, "", "name", nil},
			{"/v1/things/a/of/b", `{"a":"` + s + `"}`, "a", nil},
			{"/v1/things/a/of/b", `{"a":[1,{"b":"for ` + s + `."}]}`, "a[1].b", nil},
			{"/v1/things/a/of/b", `{"a":{"` + s + `":1}}`, "a", nil},
			{"/v1/things/a/of/b", `{"` + s + `":1}`, "body", nil},
			{"/v1/things/a/of/b", `{"a":"` + escaped.String() + `"}`, "a", nil},
			{"/v1/things/a/of/b", `"` + s + `"`, "body", nil},
			{"/v1/things/a/of/b", `{"a":1,"a":"` + s + `"}`, "a", nil},
			{"/v1/things/a/of/b", "", "Idempotency-Key", []string{"Idempotency-Key", s}},
			{"/v1/things/a/of/b", "", "If-Match", []string{"If-Match", `"` + s + `"`}},
		} {
			code, p := send(tt.path, tt.body, tt.header...)
			if code != 422 || p.Code != "secret" || len(p.Errors) != 1 || p.Errors[0].Field != tt.field || p.Errors[0].Code != "secret" {
				t.Errorf("%s %s: %d %+v", tt.path, tt.body, code, p)
			}
			if served != 1 {
				t.Fatalf("%s %s: the endpoint saw it", tt.path, tt.body)
			}
		}
		if _, p := send("/v1/things/"+s+"/of/"+s+"?name="+s, `{"a":"`+s+`"}`); len(p.Errors) != 4 {
			t.Errorf("%d fields: %+v", len(p.Errors), p.Errors)
		}
		// Text that stops to be JSON, a name twice and an unknown parameter are other
		// faults; they repeat it as little.
		for _, req := range []struct{ path, body string }{
			{"/v1/things/a/of/b?" + s + "=1", ""}, {"/v1/things/a/of/b?name=1&name=" + s, ""}, {"/v1/things/a/of/b", `{"a":tru ` + s},
		} {
			r := httptest.NewRequest("PUT", req.path, strings.NewReader(req.body))
			r.Header.Set("Authorization", "Bearer one")
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if strings.Contains(w.Body.String(), s) {
				t.Errorf("%s: %s", req.path, w.Body)
			}
		}
	}
}

func FuzzScreenBody(f *testing.F) {
	f.Add(`{"a":["x",{"b":"sk_live_00000000000000000000000000000000"}]}`)
	f.Add(`{"a":"a-secret-without-form`)
	f.Fuzz(func(t *testing.T, body string) {
		for _, e := range screenBody([]byte(body), new(knowing)) {
			if e.Field == "" || strings.Contains(e.Field, foreign) || strings.Contains(e.Message, foreign) {
				t.Errorf("%q: %+v", body, e)
			}
		}
	})
}
