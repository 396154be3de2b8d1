package verifier

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// What a gateway's configuration misspells is never an allow. The client gets 503,
// whatever its key, and the operator gets a count and a line.
func TestMisspeltDemand(t *testing.T) {
	for _, c := range []struct {
		path, fault, field string
	}{
		{"/v1/authorize/scribe-sihgt?scope=read", "keyspace", "keyspace"},
		{"/v1/authorize/scribe-sight?scope=raed", "scope", "scope"},
		{"/v1/authorize/scribe-sight?scope=read&resource=projcet/proj_1", "resource_kind", "resource"},
		{"/v1/authorize/scribe-sight?resource=projects/proj_1", "resource_kind", "resource"},
	} {
		t.Run(c.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged bytes.Buffer
				w := endpointsWorld(t, func(n *NodeConfig) { n.Logger = slog.New(slog.NewJSONHandler(&logged, nil)) })
				defer w.end()
				// "plain" reaches its whole tenant: a misspelt kind was allowed to it.
				for i, word := range []string{"plain", "project", "revoked", "nobody", ""} {
					r := request("GET", c.path, "198.51.100.9:1")
					if word != "" {
						r.Header.Set("Authorization", "Bearer "+secretOf(word))
					}
					rec := serve(w, r)
					if rec.Code != 503 || rec.Header().Get("Retry-After") != "" || rec.Header().Get("X-Keytrail-Key-Id") != "" ||
						!strings.Contains(rec.Body.String(), `"code":"gateway_misconfigured"`) || !strings.Contains(rec.Body.String(), `"field":"`+c.field+`"`) {
						t.Errorf("%q: %d %v %s", word, rec.Code, rec.Header(), rec.Body)
					}
					metrics := string(scrape(t, w.node))
					if want := fmt.Sprintf("keytrail_verifier_gateway_faults_total{fault=%q} %d\n", c.fault, i+1); !strings.Contains(metrics, want) {
						t.Errorf("no %q in the metrics", want)
					}
					if want := fmt.Sprintf("keytrail_verifier_gateway_fault_timestamp_seconds{fault=%q} 9.466848", c.fault); !strings.Contains(metrics, want) {
						t.Errorf("no %q in the metrics", want)
					}
				}
				// One line, not five; ten seconds later another, which says how many it stands for.
				if n := strings.Count(logged.String(), "a gateway is misconfigured"); n != 1 || !strings.Contains(logged.String(), `"fault":"`+c.fault+`"`) {
					t.Errorf("%d lines: %s", n, &logged)
				}
				time.Sleep(faultPause)
				w.heartbeat()
				serve(w, request("GET", c.path, "198.51.100.9:1"))
				if n := strings.Count(logged.String(), "a gateway is misconfigured"); n != 2 || !strings.Contains(logged.String(), `"not_logged_before":4`) {
					t.Errorf("%d lines: %s", n, &logged)
				}
			})
		})
	}
}

// Where a gateway lists nothing it asks for what no key holds: that is a refusal in
// the keyspace's own words, and no fault.
func TestUnlistedIsNoMistake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		for word, want := range map[string]int{"plain": 403, "revoked": 401, "nobody": 401} {
			r := request("GET", "/v1/authorize/scribe-sight?scope="+keyspace.ScopeUnlisted, "198.51.100.9:1")
			r.Header.Set("Authorization", "Bearer "+secretOf(word))
			if rec := serve(w, r); rec.Code != want {
				t.Errorf("%s: %d %s", word, rec.Code, rec.Body)
			}
		}
		if m := string(scrape(t, w.node)); !strings.Contains(m, `gateway_faults_total{fault="scope"} 0`) {
			t.Error("counted as a mistake")
		}
	})
}

// The keyspace's own envelope tells the client. A secret in place of a scope is not
// decided about, and it is in no answer, use or log line.
func TestMisspeltDemandInTheKeyspacesWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		w := newWorld(t, func(n *NodeConfig) { n.Logger = slog.New(slog.NewJSONHandler(&logged, nil)) })
		defer w.end()
		def := scribeDefinition()
		def.Errors.Envelope = []byte(`{"error":{"code":"{code}","message":"{message}"}}`)
		w.define("wrapped", def)
		w.keyIn("wrapped", "acme", secretOf("wrapped"), nil)
		ask := func(scope string) *httptest.ResponseRecorder {
			r := request("GET", "/v1/authorize/wrapped?scope="+scope+"&refusal=header", "198.51.100.9:1")
			r.Header.Set("Authorization", "Bearer "+secretOf("wrapped"))
			return serve(w, r)
		}
		rec := ask("misspelt")
		if rec.Code != 403 || rec.Header().Get(headerRefusalStatus) != "503" || !strings.HasPrefix(rec.Header().Get(headerRefusal), `{"error":{"code":"gateway_misconfigured","message":`) {
			t.Errorf("%d %v", rec.Code, rec.Header())
		}
		if !strings.Contains(logged.String(), "a gateway is misconfigured") {
			t.Error("nothing was logged")
		}
		rec = ask(secretOf("wrapped"))
		if rec.Code != 403 || rec.Header().Get(headerRefusalStatus) != "422" || !strings.Contains(rec.Header().Get(headerRefusal), `"code":"secret"`) {
			t.Errorf("%d %v", rec.Code, rec.Header())
		}
		logtest.CheckNoSecrets(t, logged.Bytes(), events.NewSecret(secretOf("wrapped")))
		logtest.CheckNoSecrets(t, []byte(fmt.Sprint(rec.Header())), events.NewSecret(secretOf("wrapped")))
	})
}

// A question that cannot be read is told to the operator too, and so is a trusted
// proxy that names no client.
func TestOtherFaultsOfGateways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		r := request("GET", "/v1/authorize/scribe-sight", "192.0.2.1:1")
		r.Header.Set("Authorization", "Bearer "+secretOf("plain"))
		if rec := serve(w, r); rec.Code != 200 {
			t.Errorf("a key without an allowlist needs no address: %d", rec.Code)
		}
		r.Header.Set("X-Forwarded-For", inside.String())
		serve(w, r)
		for _, question := range []string{"scribe-sight?scope=", "scribe-sight?scpoe=read", "scribe-sight?scope=read&scope=read", "scribe-sight?resource=project",
			"scribe-sight?%zz", "?scope=read", "Scribe", "scribe-sight/read", "scribe-sight?min_position_header=Authorization",
			"scribe-sight?min_position_header=X-Request-Id", "scribe-sight?min_position_header=X%20Y", "other?min_position_header=x-api-key",
			"scribe-sight?resource=project/" + strings.Repeat("x", 200) + secretOf("plain")} {
			for _, inHeader := range []string{"", "&refusal=header"} {
				question := question
				if inHeader != "" && !strings.Contains(question, "?") {
					inHeader = "?refusal=header"
				}
				r := request("GET", "/v1/authorize/"+question+inHeader, "198.51.100.9:1")
				r.Header.Set("Authorization", "Bearer "+secretOf("plain"))
				rec := serve(w, r)
				said := rec.Body.String() + rec.Header().Get(headerRefusal)
				if rec.Code != 503 && (inHeader == "" || rec.Code != 403) || rec.Header().Get(headerRefusalStatus) != "503" || rec.Header().Get("Retry-After") != "" ||
					!strings.Contains(said, `"code":"gateway_misconfigured"`) {
					t.Errorf("%s: %d %v %s", question, rec.Code, rec.Header(), said)
				}
				logtest.CheckNoSecrets(t, []byte(said), events.NewSecret(secretOf("plain")))
			}
		}
		m := string(scrape(t, w.node))
		for _, want := range []string{`faults_total{fault="client_address"} 1`, `faults_total{fault="malformed"} 26`} {
			if !strings.Contains(m, want+"\n") {
				t.Errorf("no %q in the metrics", want)
			}
		}
	})
}

// An application's misspelt question at /v1/verify is denied, and told.
func TestMisspeltQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		key := `{"key":"` + secretOf("plain") + `"`
		for i, c := range []struct{ rest, reason, detail, fault string }{
			{`,"keyspace":"scribe-sight","scope":"raed"}`, "scope_missing", "declares no scope of this name", "scope"},
			{`,"resource":{"kind":"projcet","id":"proj_1"}}`, "resource_not_allowed", "declares no resource of this kind", "resource_kind"},
			{`,"keyspace":"scribe-sihgt"}`, "key_unknown", "there is no keyspace of this name", "keyspace"},
			{`,"scope":"upload"}`, "scope_missing", "", ""},
			{`,"scope":"unlisted"}`, "scope_missing", "", ""},
			{`,"resource":{"kind":"project","id":"proj_1"}}`, "ok", "", ""},
		} {
			got := serve(w, httptest.NewRequest("POST", "/v1/verify", strings.NewReader(key+c.rest))).Body.String()
			if !strings.Contains(got, `"reason":"`+c.reason+`"`) || !strings.Contains(got, c.detail) || strings.Contains(got, `"detail"`) != (c.detail != "") {
				t.Errorf("%d: %s", i, got)
			}
			if want := fmt.Sprintf("faults_total{fault=%q} 1\n", c.fault); c.fault != "" && !strings.Contains(string(scrape(t, w.node)), want) {
				t.Errorf("%d: no %s", i, want)
			}
		}
	})
}
