package commands_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
)

// TestEveryWriteHoldsItsPrecondition: a write for a revision that is not the
// present one appends nothing, whichever command it is.
func TestEveryWriteHoldsItsPrecondition(t *testing.T) {
	for _, s := range steps {
		if strings.HasPrefix(s.name, "create") {
			continue // of nothing that there is
		}
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				n := w.node("one")
				w.define(n, "acme", acme)
				key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "given"}).Key.ID
				before := len(w.log.Records())
				call := w.call("k1", s.name)
				call.If = commands.IfRev(7)
				if _, err := s.do(t.Context(), n, call, key); codeOf(err) != "precondition_failed" || len(w.log.Records()) != before {
					t.Errorf("for another revision: %v, %d events", err, len(w.log.Records())-before)
				}
				rev := uint64(1)
				switch s.name {
				case "tenant limit":
					rev = 0 // a tenant is there before anything is set for it
				case "role": // is not there yet: no revision of it is right
					call.If = commands.IfRev(0)
					if _, err := s.do(t.Context(), n, call, key); codeOf(err) != "precondition_failed" {
						t.Errorf("of a role that is not there: %v", err)
					}
					call.If = commands.Precondition{}
					if _, err := s.do(t.Context(), n, call, key); err != nil {
						t.Fatal(err)
					}
					return
				}
				call.If = commands.IfRev(rev)
				done, err := s.do(t.Context(), n, call, key)
				if err != nil || len(w.log.Records()) != before+s.events {
					t.Fatalf("for the present revision: %v, %d events", err, len(w.log.Records())-before)
				}
				if !done.Secret.IsZero() {
					w.secrets = append(w.secrets, done.Secret)
				}
				// The retry of what was done is answered as before: the revision has moved on by it.
				again, err := s.do(t.Context(), n, call, key)
				if err != nil || !again.Replayed || again.Seq != done.Seq {
					t.Errorf("again: %v, replayed %v", err, again.Replayed)
				}
				logtest.CheckLog(t, w.log)
			})
		})
	}
}

// TestPreconditionHoldsAgainstTheLog: the revision is that of the log when the
// command is decided, also where another node has moved it on in between.
func TestPreconditionHoldsAgainstTheLog(t *testing.T) {
	w := newWorld(t)
	one, two := w.node("one"), w.node("two")
	w.define(one, "acme", acme)
	id := w.create(one, "acme", newCreate("t1", "a")).Key.ID
	allow := func(n *node, network string) error {
		call := w.call("", "")
		call.If = commands.IfRev(1)
		_, err := n.Change(t.Context(), call, "allowlist", id, &commands.SetAllowlist{Allowlist: &[]string{network}})
		return err
	}
	p := w.log.PauseNext(logtest.OpAppend, logtest.BeforeEffect)
	second := make(chan error, 1)
	go func() { second <- allow(one, "192.0.2.0/24") }()
	<-p.Entered()
	if err := allow(two, "10.0.0.0/8"); err != nil {
		t.Error(err)
	}
	p.Resume()
	if err := <-second; codeOf(err) != "precondition_failed" {
		t.Fatalf("the second writer of one revision: %v", err)
	}
	k, _ := one.dir.Key(id)
	if k, _ := w.load(&k); k.Rev != 2 || len(k.Allowlist) != 1 || k.Allowlist[0].String() != "10.0.0.0/8" {
		t.Errorf("rev %d, allowlist %v", k.Rev, k.Allowlist)
	}
}

// TestPreconditionsOverHTTP: ETag on what is read and written, If-Match and
// If-None-Match as RFC 9110 says.
func TestPreconditionsOverHTTP(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	key := "/v1/keys/" + w.create(n, "acme", newCreate("t1", "a")).Key.ID.String()
	const role, tenant, space = "/v1/keyspaces/acme/tenants/t1/roles/dev", "/v1/keyspaces/acme/tenants/t1", "/v1/keyspaces/acme"
	def, err := json.Marshal(acme)
	if err != nil {
		t.Fatal(err)
	}
	const allow, scopes, pro = `{"allowlist":["10.0.0.0/8"]}`, `{"scopes":["read"]}`, `{"limit":{"plan":"pro"}}`
	for _, tt := range []struct {
		method, path, body, header, value string
		status                            int
		etag                              string
	}{
		{"GET", key, "", "", "", 200, `"1"`},
		{"GET", space, "", "", "", 200, `"1"`},
		{"GET", tenant, "", "", "", 200, `"0"`},
		{"GET", key + "?as_of=" + start, "", "", "", 200, ""},
		{"GET", key + "/history", "", "", "", 200, ""},
		{"GET", space + "/keys", "", "", "", 200, ""},

		{"PUT", key + "/allowlist", allow, "If-Match", `"2"`, 412, `"1"`},
		{"PUT", key + "/allowlist", allow, "If-Match", `W/"1"`, 412, `"1"`},
		{"PUT", key + "/allowlist", allow, "If-Match", `"01"`, 412, `"1"`},
		{"PUT", key + "/allowlist", allow, "If-None-Match", `*`, 412, `"1"`},
		{"PUT", key + "/allowlist", allow, "If-None-Match", `"7", W/"1"`, 412, `"1"`},
		{"PUT", key + "/allowlist", allow, "If-Match", `"0" , W/"1",, "1"`, 200, `"2"`},
		{"PUT", key + "/allowlist", allow, "If-Match", `"1"`, 412, `"2"`}, // though it stands as asked
		{"PUT", key + "/allowlist", allow, "If-Match", ` * `, 200, `"2"`},
		{"PUT", key + "/allowlist", allow, "If-None-Match", `"1"`, 200, `"2"`},
		{"POST", key + "/disable", "", "If-Match", `"1"`, 412, `"2"`},
		{"POST", key + "/disable", "", "If-Match", `"2"`, 200, `"3"`},
		{"POST", key + "/disable", "", "If-Match", `"2"`, 409, ""}, // it would be refused anyway
		{"PATCH", key, `{"name":"b"}`, "If-Match", `"2"`, 412, `"3"`},
		{"DELETE", key, "", "If-Match", `"2"`, 412, `"3"`},

		{"PUT", role, scopes, "If-Match", `*`, 412, ""},
		{"PUT", role, scopes, "If-Match", `"0"`, 412, ""},
		{"PUT", role, scopes, "If-None-Match", `*`, 200, `"1"`},
		{"PUT", role, scopes, "If-None-Match", `*`, 412, `"1"`},
		{"GET", role, "", "", "", 200, `"1"`},
		{"DELETE", role, "", "If-Match", `"2"`, 412, `"1"`},
		{"DELETE", role, "", "If-Match", `"1"`, 200, `"2"`},
		{"DELETE", role, "", "If-Match", `"1"`, 404, ""},
		{"PUT", role, scopes, "If-Match", `"2"`, 412, ""}, // what is deleted is not there

		{"PUT", tenant + "/limit", pro, "If-Match", `"1"`, 412, `"0"`},
		{"PUT", tenant + "/limit", pro, "If-Match", `"0"`, 200, `"1"`},

		{"PUT", space, string(def), "If-Match", `"2"`, 412, `"1"`},
		{"PUT", space + "?dry_run=true", string(def), "If-Match", `"2"`, 412, `"1"`},
		{"PUT", space + "?dry_run=true", string(def), "If-Match", `"1"`, 200, ""},
		{"PUT", space, string(def), "If-None-Match", `*`, 412, `"1"`},
		{"PUT", "/v1/keyspaces/other", string(def), "If-None-Match", `*`, 200, `"1"`},
		{"POST", key + "/rotate", `{}`, "If-Match", `"2"`, 409, ""}, // disabled
		{"POST", key + "/enable", ``, "If-Match", `"3"`, 200, `"4"`},
		{"POST", key + "/rotate", `{}`, "If-Match", `"3"`, 412, `"4"`},
		{"POST", space + "/keys", `{"tenant":"t1","name":"c"}`, "", "", 201, `"1"`},
	} {
		var header []string
		if tt.header != "" {
			header = []string{tt.header, tt.value}
		}
		before := len(w.log.Records())
		rec := n.do(w.root, tt.method, tt.path, tt.body, header...)
		if rec.Code != tt.status || rec.Header().Get("ETag") != tt.etag {
			t.Errorf("%s %s, %s: %s: %d, ETag %s; want %d, %s\n%s", tt.method, tt.path, tt.header, tt.value, rec.Code, rec.Header().Get("ETag"), tt.status, tt.etag, rec.Body)
		}
		if tt.status == 412 && (member(t, rec, "code") != "precondition_failed" || len(w.log.Records()) != before || tt.etag != "" && !strings.Contains(member(t, rec, "detail"), "rev "+strings.Trim(tt.etag, `"`))) {
			t.Errorf("%s %s: %s", tt.method, tt.path, rec.Body)
		}
		if key := member(t, rec, "key"); key != "" {
			w.secrets = append(w.secrets, events.NewSecret(key))
		}
	}
}

// TestBadPreconditionsAreRefused: a header that cannot be read, or that an
// endpoint would pass over, is a 400 that names it.
func TestBadPreconditionsAreRefused(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	key := "/v1/keys/" + w.create(n, "acme", newCreate("t1", "a")).Key.ID.String()
	bad := func(method, path, body, header, value string) {
		t.Helper()
		before := len(w.log.Records())
		rec := n.do(w.root, method, path, body, header, value)
		var p api.Problem
		if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != http.StatusBadRequest || p.Code != "bad_header" || len(p.Errors) != 1 || p.Errors[0].Field != header || len(w.log.Records()) != before {
			t.Errorf("%s %s with %s: %q: %d %s", method, path, header, value, rec.Code, rec.Body)
		}
	}
	for _, value := range []string{"", " ", ",", "1", `"1`, `1"`, `"1" "2"`, `"1"x`, `*, "1"`, `"1", *`, `w/"1"`, `W/1`, `W/ "1"`, `"a b"`, "\"a\x7f\"", strings.Repeat(`"1",`, 101)} {
		for _, header := range []string{"If-Match", "If-None-Match"} {
			bad("PUT", key+"/allowlist", `{"allowlist":[]}`, header, value)
			bad("POST", key+"/disable", "", header, value)
			bad("POST", key+"/rotate", "{}", header, value)
			bad("PUT", "/v1/keyspaces/acme/tenants/t1/limit", `{"limit":null}`, header, value)
			bad("DELETE", "/v1/keyspaces/acme/tenants/t1/roles/dev", "", header, value)
		}
	}
	for _, header := range []string{"If-Match", "If-None-Match"} {
		bad("POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"b"}`, header, "*")
		bad("POST", "/v1/keyspaces/acme/keys/import", `{"keys":[]}`, header, `"1"`)
	}
}

// FuzzPrecondition: what is accepted for a revision is in the header as it is
// written, and nothing else writes.
func FuzzPrecondition(f *testing.F) {
	for _, s := range []string{`"1"`, `W/"1"`, `*`, `"0", "1"`, `"1`, `1`, ``, `"01"`, `"1",*`} {
		f.Add(s)
	}
	w := newWorld(f)
	n := w.node("one")
	w.define(n, "acme", acme)
	key := w.create(n, "acme", newCreate("t1", "a")).Key
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsAny(value, "\r\n\x00") {
			t.Skip() // no HTTP server hands that on
		}
		before := len(w.log.Records())
		// What is asked for stands already: a write that is let through appends nothing.
		rec := n.do(w.root, "PUT", "/v1/keys/"+key.ID.String()+"/allowlist", `{"allowlist":[]}`, "If-Match", value)
		holds := strings.TrimSpace(value) == "*" || slices.ContainsFunc(strings.Split(value, ","), func(e string) bool { return strings.TrimSpace(e) == `"1"` })
		if (rec.Code == 200) && !holds || rec.Code != 200 && rec.Code != 400 && rec.Code != 412 || len(w.log.Records()) != before {
			t.Errorf("If-Match: %q is answered %d %s", value, rec.Code, rec.Body)
		}
	})
}
