package verifier

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata")

// endpointsWorld holds the keys that testdata/endpoints.txt speaks of.
func endpointsWorld(t testing.TB, change func(*NodeConfig)) *world {
	w := newWorld(t, func(c *NodeConfig) {
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("10.0.0.0/8")}
		if change != nil {
			change(c)
		}
	})
	other := scribeDefinition()
	other.Credential.Header = "X-Api-Key"
	w.define("other", other)
	w.key("plain", nil)
	w.key("limited", func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: 60, Burst: 2} })
	w.key("office", func(c *events.KeyCreated) { c.Allowlist = []netip.Prefix{office} })
	w.key("project", func(c *events.KeyCreated) { c.Resources = []events.Resource{{Kind: "project", ID: "proj_1"}} })
	w.put(w.key("revoked", nil), &events.KeyRevoked{Code: events.RevokeCompromise})
	w.key("expired", func(c *events.KeyCreated) { c.ExpiresAt = events.At(time.Now()) })
	w.put(w.key("disabled", nil), &events.KeyDisabled{})
	w.keyIn("other", "acme", secretOf("elsewhere"), nil)
	return w
}

// regimesWorld holds the keys that testdata/regimes.txt speaks of.
func regimesWorld(t testing.TB, change func(*NodeConfig)) *world {
	w := newWorld(t, change)
	w.define("cloud", cloudDefinition())
	w.keyIn("cloud", "acme", secretOf("first"), nil)
	w.keyIn("cloud", "acme", secretOf("second"), nil)
	listed := func(c *events.KeyCreated) { c.Allowlist = []netip.Prefix{office} }
	w.put(w.keyIn("cloud", "beta", secretOf("gone"), listed), &events.KeyRevoked{Code: events.RevokeCompromise})
	w.keyIn("cloud", "beta", secretOf("deployer"), func(c *events.KeyCreated) { c.Scopes = []string{"deploy", "read"} })
	locked := scribeDefinition()
	locked.HTTPSOnly = true
	w.define("locked", locked)
	w.keyIn("locked", "acme", secretOf("safe"), nil)
	hub := scribeDefinition()
	hub.KeyTypes[0].Length, hub.KeyTypes[0].Checksum = keyspace.DefaultSecretLength-keyspace.CRC32.Len(), keyspace.CRC32
	w.define("hub", hub)
	w.keyIn("hub", "acme", checkedSecret(), nil)
	return w
}

// checkedSecret is a secret with a checksum, as long as one of secretOf.
func checkedSecret() string {
	random := []byte("checked" + strings.Repeat("x", keyspace.DefaultSecretLength))[:keyspace.DefaultSecretLength-keyspace.CRC32.Len()]
	return "sk_live_" + string(keyspace.CRC32.Append(random, random))
}

var (
	secretRE   = regexp.MustCompile(`\$[a-z]+`)
	positionRE = regexp.MustCompile(`"position":"([A-Za-z0-9_-]{50})"`)
)

// position returns the position of an event of the world's log.
func (w *world) position(seq events.Seq) events.Position {
	return logtest.PositionAt(w.log.ID(), w.log.Records(), seq)
}

// expand fills in what endpoints.txt writes as $….
func (w *world) expand(s string) string {
	at := w.view.At()
	s = strings.ReplaceAll(s, "$P", w.position(at).String())
	s = strings.ReplaceAll(s, "$AHEAD", w.position(at+1).String())
	restored := w.position(at)
	restored.History[0] ^= 1
	s = strings.ReplaceAll(s, "$RESTORED", restored.String())
	s = strings.ReplaceAll(s, "$FOREIGN", events.Position{Log: events.LogID{1}, Seq: at}.String())
	s = strings.ReplaceAll(s, "$checked", checkedSecret())
	return secretRE.ReplaceAllStringFunc(s, func(v string) string { return secretOf(v[1:]) })
}

// ask sends one request of endpoints.txt and prints the answer as it stands there.
func (w *world) ask(script string) string {
	w.t.Helper()
	head, rest, _ := strings.Cut(script, "\n")
	method, target, _ := strings.Cut(strings.TrimPrefix(head, "> "), " ")
	h := http.Header{}
	for rest != "" && rest[0] != '{' && rest[0] != '[' {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		name, value, ok := strings.Cut(line, ": ")
		if ok {
			h.Add(name, w.expand(value))
		}
	}
	r := httptest.NewRequest(method, target, strings.NewReader(w.expand(rest)))
	for name, values := range h {
		r.Header[name] = values
	}
	rec := httptest.NewRecorder()
	w.mux.ServeHTTP(rec, r)
	var out strings.Builder
	fmt.Fprintf(&out, "< %d\n", rec.Code)
	var names []string
	for name := range rec.Header() {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range rec.Header()[name] {
			fmt.Fprintf(&out, "< %s: %s\n", name, v)
		}
	}
	body := positionRE.ReplaceAllStringFunc(rec.Body.String(), func(s string) string {
		p, err := events.ParsePosition(positionRE.FindStringSubmatch(s)[1])
		if err != nil || p.Log != w.log.ID() {
			w.t.Fatalf("position %s: %v", s, err)
		}
		if want := w.position(p.Seq); p != want {
			w.t.Errorf("position %v, want %v", p, want)
		}
		return fmt.Sprintf(`"position":"@%d"`, p.Seq)
	})
	if body != "" {
		out.WriteString(strings.TrimSuffix(body, "\n") + "\n")
	}
	return out.String()
}

// stories are the files of testdata, each with its world.
var stories = []struct {
	file  string
	world func(testing.TB, func(*NodeConfig)) *world
	least int // requests
}{{"endpoints", endpointsWorld, 50}, {"regimes", regimesWorld, 20}}

// TestEndpoints runs the stories of testdata.
func TestEndpoints(t *testing.T) {
	for _, story := range stories {
		t.Run(story.file, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := story.world(t, nil)
				if n := w.tell("testdata/" + story.file + ".txt"); n < story.least {
					t.Fatalf("only %d requests were made", n)
				}
				w.end()
			})
		})
	}
}

// tell makes the requests of the file and compares the answers. It returns how
// many there were.
func (w *world) tell(file string) (requests int) {
	data, err := os.ReadFile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	var got strings.Builder
	for _, block := range strings.Split(strings.TrimSpace(string(data)), "\n\n") {
		if got.Len() > 0 {
			got.WriteString("\n")
		}
		request, _, _ := strings.Cut(block, "\n< ")
		got.WriteString(strings.TrimSuffix(request, "\n") + "\n")
		if strings.HasPrefix(request, "> ") {
			w.heartbeat()
			got.WriteString(w.ask(request))
			requests++
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			w.t.Fatal(err)
		}
	} else if got.String() != string(data) {
		a, b := strings.Split(string(data), "\n"), strings.Split(got.String(), "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				w.t.Fatalf("%s, line %d:\n%s\nwant:\n%s", file, i+1, b[i], a[i])
			}
		}
		w.t.Fatalf("%s: %d lines, want %d", file, len(b), len(a))
	}
	return requests
}

// The hand-written answer is the JSON that its shape says.
func TestAnswerIsJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		for word, limited := range map[string]bool{"plain": false, "limited": true, "nobody": false} {
			req := Request{Secret: events.NewSecret(secretOf(word))}
			d := w.node.Decide(t.Context(), &req)
			var got struct {
				Allowed     bool            `json:"allowed"`
				Reason      events.Reason   `json:"reason"`
				Status      int             `json:"status"`
				Key         *events.KeyID   `json:"key_id"`
				Tenant      events.TenantID `json:"tenant"`
				Environment string          `json:"environment"`
				Scopes      []string        `json:"scopes"`
				Limit       *struct {
					Limit     int64  `json:"limit"`
					Remaining int64  `json:"remaining"`
					Reset     int64  `json:"reset"`
					Scope     string `json:"scope"`
				} `json:"limit"`
				Position events.Position `json:"position"`
				Use      string          `json:"use_id"`
			}
			if err := json.Unmarshal(w.node.append(nil, &d, &req), &got, json.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(false)); err != nil {
				t.Fatalf("%s: %v", word, err)
			}
			use, err := events.ParseUseID(got.Use)
			if got.Allowed != d.Allowed() || got.Reason != d.Reason || got.Status != d.Status || use != d.Use || err != nil ||
				got.Position.Seq != d.Seq || (got.Limit != nil) != limited || (got.Key != nil) != d.Key.Exists() {
				t.Errorf("%s: %+v", word, got)
			}
			if d.Key.Exists() && (*got.Key != d.Key.ID || got.Tenant != d.Key.Tenant || got.Environment != "live" || !slices.Equal(got.Scopes, []string{"read", "write"})) {
				t.Errorf("%s: %+v", word, got)
			}
		}
	})
}

func TestForwardedForOfAStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-Forwarded-For", inside.String())
		for peer, want := range map[string]string{
			"192.0.2.1:4711": "203.0.113.7", "192.0.2.2:4711": "192.0.2.2", // a neighbour of the proxy
			"[::ffff:192.0.2.1]:4711": "203.0.113.7", "[2001:db8::1]:4711": "2001:db8::1", "": "invalid IP",
		} {
			r.RemoteAddr = peer
			var req Request
			if w.node.origin(asked(r, ""), &req); req.IP.String() != want {
				t.Errorf("peer %q: %s, want %s", peer, req.IP, want)
			}
		}
	})
}

func TestBodyTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		for _, path := range []string{"/v1/verify", "/v1/verify/batch"} {
			rec := httptest.NewRecorder()
			w.mux.ServeHTTP(rec, httptest.NewRequest("POST", path, strings.NewReader(`{"key":"`+strings.Repeat("x", api.MaxBody)+`"}`)))
			if rec.Code != http.StatusRequestEntityTooLarge {
				t.Errorf("%s: %d", path, rec.Code)
			}
		}
		many := `{"requests":[` + strings.Repeat(`{"key":"x"},`, MaxBatch) + `{"key":"x"}]}`
		rec := httptest.NewRecorder()
		w.mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify/batch", strings.NewReader(many)))
		if rec.Code != http.StatusUnprocessableEntity {
			t.Errorf("%d items: %d", MaxBatch+1, rec.Code)
		}
		if w.ledger.Buffered() != 0 {
			t.Error("what cannot be read is no decision")
		}
	})
}

// A member that is given and holds nothing asks for less than the caller meant:
// it is refused, and nothing is decided. An absent one, and an empty key, are not.
func TestEmptyMembersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		post := func(body string) *httptest.ResponseRecorder {
			rec := httptest.NewRecorder()
			w.mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify", strings.NewReader(body)))
			return rec
		}
		key := `"key":"` + secretOf("plain") + `"`
		for _, name := range []string{"keyspace", "scope", "resource", "ip", "scheme", "cost", "min_position", "max_staleness"} {
			for _, empty := range []string{`null`, `""`, `" "`, `{}`, `[]`} {
				rec := post("{" + key + `,"` + name + `":` + empty + "}")
				var p api.Problem
				if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != 422 || len(p.Errors) != 1 || !strings.HasPrefix(p.Errors[0].Field, name) {
					t.Errorf("%s: %s: %d %s", name, empty, rec.Code, rec.Body)
				}
			}
		}
		if n := w.ledger.Buffered(); n > 0 {
			t.Errorf("%d decisions", n)
		}
		for body, want := range map[string]string{"{" + key + "}": `"reason":"ok"`, `{"key":""}`: `"reason":"key_missing"`} {
			if rec := post(body); rec.Code != 200 || !strings.Contains(rec.Body.String(), want) {
				t.Errorf("%s: %d %s", body, rec.Code, rec.Body)
			}
		}
	})
}

// A batch of uses that must be durable waits for the stream once, not for each.
func TestBatchSyncsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		durable := scribeDefinition()
		durable.Ledger = keyspace.LedgerSync
		w.define(scribe, durable)
		one := `{"key":"` + secretOf("plain") + `"}`
		bad := `{"key":"` + secretOf("plain") + `","cost":0}`
		rec := httptest.NewRecorder()
		body := `{"requests":[` + strings.Repeat(one+",", MaxBatch-1) + bad + "]}"
		first, err := w.log.LastUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify/batch", strings.NewReader(body)))
		if rec.Code != 200 || strings.Count(rec.Body.String(), `"reason":"ok"`) != MaxBatch-1 || strings.Count(rec.Body.String(), `"error":{`) != 1 {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		last, err := w.log.LastUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := last - first; n != 1 || w.ledger.Buffered() != 0 {
			t.Fatalf("%d messages for one batch, %d uses not durable", n, w.ledger.Buffered())
		}
		w.log.SetDown(true)
		rec = httptest.NewRecorder()
		began := time.Now()
		w.mux.ServeHTTP(rec, httptest.NewRequest("POST", "/v1/verify/batch", strings.NewReader(body)))
		if d := time.Since(began); d != 2*time.Second || strings.Count(rec.Body.String(), `"reason":"verifier_stale"`) != MaxBatch-1 {
			t.Fatalf("with the stream away, after %s: %s", d, rec.Body)
		}
		w.log.SetDown(false)
		w.end()
	})
}

// A request that waits for its position and for its use waits no longer than for one of
// them: gateways give up on an answer that takes much longer.
func TestWaitsAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		durable := scribeDefinition()
		durable.Ledger = keyspace.LedgerSync
		w.define(scribe, durable)
		ahead := w.position(w.view.At())
		ahead.Seq++
		w.log.SetDown(true)
		handler := w.handler(scribe)
		for what, ask := range map[string]func() *httptest.ResponseRecorder{
			"verify": func() *httptest.ResponseRecorder {
				return serve(w, httptest.NewRequest("POST", "/v1/verify", strings.NewReader(`{"key":"`+secretOf("plain")+`","min_position":"`+ahead.String()+`"}`)))
			},
			"authorize": func() *httptest.ResponseRecorder {
				return get(w.mux, "/v1/authorize/"+string(scribe)+"?min_position_header=X-Position", "Authorization", "Bearer "+secretOf("plain"), "X-Position", ahead.String())
			},
			"protect": func() *httptest.ResponseRecorder {
				return get(handler, "/?min_position_header=X-Position", "Authorization", "Bearer "+secretOf("plain"), "X-Position", ahead.String())
			},
		} {
			began := time.Now()
			rec := ask()
			if d := time.Since(began); d != 2*time.Second || rec.Code != 503 && !strings.Contains(rec.Body.String(), "verifier_stale") {
				t.Errorf("%s: after %s: %d %s", what, d, rec.Code, rec.Body)
			}
		}
		w.log.SetDown(false)
		w.end()
	})
}

// While one question of a batch waits for its use to be durable, the lease that the
// others rest on grows too old: none is allowed on it.
func TestBatchEndsWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		durable := scribeDefinition()
		durable.Ledger = keyspace.LedgerSync
		w.define("durable", durable)
		w.keyIn("durable", "acme", secretOf("durable"), nil)
		w.key("plain", nil)
		ask := func(word string) string { return `{"key":"` + secretOf(word) + `"}` }
		body := `{"requests":[` + ask("plain") + "," + ask("durable") + "," + ask("plain") + "]}"
		post := func() string {
			return serve(w, httptest.NewRequest("POST", "/v1/verify/batch", strings.NewReader(body))).Body.String()
		}
		time.Sleep(9 * time.Second)
		if got := post(); strings.Count(got, `"reason":"ok"`) != 3 {
			t.Fatal(got)
		}
		w.log.SetDown(true)
		if got := post(); strings.Count(got, `"reason":"verifier_stale"`) != 3 {
			t.Errorf("answered 11 s after the lease was asked for: %s", got)
		}
		w.log.SetDown(false)
		w.end()
	})
}

func TestAuthenticate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		operator := "kt_" + strings.Repeat("a", 40)
		w.keyIn(events.Builtin, events.RootTenant, operator, func(c *events.KeyCreated) {
			c.KeyType, c.Environment, c.Scopes = "operator", "", []string{events.ScopeAuditExport}
			c.Resources = []events.Resource{{Kind: events.ResourceKeyspace, ID: "scribe-sight"}, {Kind: events.ResourceTenant, ID: "acme"}}
		})
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", "Bearer "+operator)
		r.Header.Set("User-Agent", "agent\x00\xff"+strings.Repeat("ü", 300))
		r.Header.Set(api.RequestIDHeader, "req_1")
		r.Header.Set("X-Forwarded-For", "203.0.113.7")
		caller, err := w.node.Authenticate(r, "", "GET /v1/keys")
		if err != nil {
			t.Fatal(err)
		}
		caller.Record(nil)
		p := caller.Principal
		if p.Actor.Validate() != nil || p.Actor.Kind != events.ActorKey || !p.Has(events.ScopeAuditRead) || p.Has(events.ScopeKeysRead) ||
			!slices.Equal(p.Keyspaces, []events.KeyspaceID{scribe}) || !slices.Equal(p.Tenants, []events.TenantID{"acme"}) ||
			p.IP != inside || p.RequestID != "req_1" || input.CheckText(p.UserAgent, 256) != nil || !strings.HasPrefix(p.UserAgent, "agent\uFFFDü") {
			t.Fatalf("%+v", p)
		}
		for auth, want := range map[string]int{"": 401, "Bearer " + secretOf("plain"): 401, "Bearer " + operator + "x": 401} {
			r.Header.Set("Authorization", auth)
			var prob *api.Problem
			if _, err := w.node.Authenticate(r, "", "GET /v1/keys"); !errors.As(err, &prob) || prob.Status != want {
				t.Errorf("%q: %v", auth, err)
			}
			rec := httptest.NewRecorder()
			api.Write(rec, r, prob)
			if !strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Bearer ") {
				t.Error("a 401 without a challenge")
			}
		}
		time.Sleep(time.Minute)
		r.Header.Set("Authorization", "Bearer "+operator)
		var prob *api.Problem
		if _, err := w.node.Authenticate(r, "", "GET /v1/keys"); !errors.As(err, &prob) || prob.Status != 503 || prob.RetryAfter != 1 {
			t.Errorf("stale: %v", err)
		}
		if e := w.end()[0]; e.end != 5 {
			t.Errorf("%d decisions on the record, want 5", e.end)
		}
	})
}

// No secret that was presented, of a key or not, is in a log line, a metric, an
// answer or a use.
func TestSecretsStayHere(t *testing.T) {
	for _, story := range stories {
		t.Run(story.file, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged bytes.Buffer
				w := story.world(t, func(c *NodeConfig) {
					c.Logger = slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
				})
				old := slog.Default()
				slog.SetDefault(slog.New(slog.NewJSONHandler(&logged, nil)))
				defer slog.SetDefault(old)
				data, err := os.ReadFile("testdata/" + story.file + ".txt")
				if err != nil {
					t.Fatal(err)
				}
				var answers strings.Builder
				for _, block := range strings.Split(string(data), "\n\n") {
					if request, _, _ := strings.Cut(block, "\n< "); strings.HasPrefix(request, "> ") {
						w.heartbeat()
						answers.WriteString(w.ask(request))
					}
				}
				var secrets []events.Secret
				for _, word := range []string{"plain", "limited", "office", "project", "revoked", "expired", "disabled", "elsewhere", "nobody",
					"first", "second", "gone", "deployer", "safe", "chequed"} {
					secrets = append(secrets, events.NewSecret(secretOf(word)))
				}
				secrets = append(secrets, events.NewSecret(checkedSecret()))
				if logged.Len() == 0 || answers.Len() == 0 {
					t.Fatal("nothing to look at")
				}
				logtest.CheckNoSecrets(t, logged.Bytes(), secrets...)
				logtest.CheckNoSecrets(t, []byte(answers.String()), secrets...)
				logtest.CheckNoSecrets(t, scrape(t, w.node), secrets...)
				w.end()
				last, _ := w.log.LastUse(t.Context())
				ms, err := w.log.ReadUses(t.Context(), 0, int(last))
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range ms {
					logtest.CheckNoSecrets(t, m.Data, secrets...)
				}
			})
		})
	}
}
