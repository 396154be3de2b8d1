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
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/schemas/api"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata")

// doorsWorld holds the keys that testdata/doors.txt speaks of.
func doorsWorld(t testing.TB, change func(*NodeConfig)) *world {
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
	w.key("limited", func(c *events.KeyCreated) { c.Limit = &events.Limit{PerMinute: 60, Burst: 2} })
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
	hub.KeyTypes[0].Length, hub.KeyTypes[0].Checksum = events.DefaultSecretLength-events.CRC32.Len(), events.CRC32
	w.define("hub", hub)
	w.keyIn("hub", "acme", checkedSecret(), nil)
	return w
}

// checkedSecret is a secret with a checksum, as long as one of secretOf.
func checkedSecret() string {
	random := []byte("checked" + strings.Repeat("x", events.DefaultSecretLength))[:events.DefaultSecretLength-events.CRC32.Len()]
	return "sk_live_" + string(events.CRC32.Append(random, random))
}

var (
	secretRE   = regexp.MustCompile(`\$[a-z]+`)
	positionRE = regexp.MustCompile(`"position":"([A-Za-z0-9_-]{39})"`)
)

// expand fills in what doors.txt writes as $….
func (w *world) expand(s string) string {
	at := w.view.At()
	s = strings.ReplaceAll(s, "$P", events.Position{Log: w.log.ID(), Seq: at}.String())
	s = strings.ReplaceAll(s, "$AHEAD", events.Position{Log: w.log.ID(), Seq: at + 1}.String())
	s = strings.ReplaceAll(s, "$FOREIGN", events.Position{Log: events.LogID{1}, Seq: at}.String())
	s = strings.ReplaceAll(s, "$checked", checkedSecret())
	return secretRE.ReplaceAllStringFunc(s, func(v string) string { return secretOf(v[1:]) })
}

// ask sends one request of doors.txt and prints the answer as it stands there.
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
}{{"doors", doorsWorld, 50}, {"regimes", regimesWorld, 20}}

// TestDoors runs the stories of testdata.
func TestDoors(t *testing.T) {
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
			w.beat()
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
		w := doorsWorld(t, nil)
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
				got.Position.Seq != d.Seq || (got.Limit != nil) != limited || (got.Key != nil) != (d.Key != nil) {
				t.Errorf("%s: %+v", word, got)
			}
			if d.Key != nil && (*got.Key != d.Key.ID || got.Tenant != d.Key.Tenant || got.Environment != "live" || !slices.Equal(got.Scopes, []string{"read", "write"})) {
				t.Errorf("%s: %+v", word, got)
			}
		}
	})
}

func TestForwardedForOfAStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
		defer w.end()
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("X-Forwarded-For", inside.String())
		for peer, want := range map[string]string{
			"192.0.2.1:4711": "203.0.113.7", "192.0.2.2:4711": "192.0.2.2", // a neighbour of the proxy
			"[::ffff:192.0.2.1]:4711": "203.0.113.7", "[2001:db8::1]:4711": "2001:db8::1", "": "invalid IP",
		} {
			r.RemoteAddr = peer
			if got := w.node.clientIP(r); got.String() != want {
				t.Errorf("peer %q: %s, want %s", peer, got, want)
			}
		}
	})
}

func TestBodyTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
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

func TestProtect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
		defer w.end()
		h := w.node.Protect(scribe, "write", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			d, ok := DecisionFrom(r.Context())
			fmt.Fprintf(rw, "%v %s", ok, d.Key.ID)
		}))
		for _, c := range []struct {
			auth   string
			status int
			body   string
		}{
			{"Bearer " + secretOf("plain"), 200, "true key_01000000000000000000000001"},
			{"Bearer " + secretOf("revoked"), 401, `"code":"key_revoked"`},
			{"Bearer " + secretOf("office"), 403, `"code":"address_not_allowed"`},
			{"", 401, `"code":"key_missing"`},
		} {
			r := httptest.NewRequest("GET", "/", nil)
			if c.auth != "" {
				r.Header.Set("Authorization", c.auth)
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != c.status || !strings.Contains(rec.Body.String(), c.body) {
				t.Errorf("%q: %d %s", c.auth, rec.Code, rec.Body)
			}
		}
		if _, ok := DecisionFrom(t.Context()); ok {
			t.Error("a decision out of nowhere")
		}
	})
}

func TestAuthenticate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
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
		p, err := w.node.Authenticate(r)
		if err != nil {
			t.Fatal(err)
		}
		if p.Actor.Validate() != nil || p.Actor.Kind != events.ActorKey || !p.Has(events.ScopeAuditRead) || p.Has(events.ScopeKeysRead) ||
			!slices.Equal(p.Keyspaces, []events.KeyspaceID{scribe}) || !slices.Equal(p.Tenants, []events.TenantID{"acme"}) ||
			p.IP != inside || p.RequestID != "req_1" || events.CheckText(p.UserAgent, 256) != nil || !strings.HasPrefix(p.UserAgent, "agent\uFFFDü") {
			t.Fatalf("%+v", p)
		}
		for auth, want := range map[string]int{"": 401, "Bearer " + secretOf("plain"): 401, "Bearer " + operator + "x": 401} {
			r.Header.Set("Authorization", auth)
			var prob *api.Problem
			if _, err := w.node.Authenticate(r); !errors.As(err, &prob) || prob.Status != want {
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
		if _, err := w.node.Authenticate(r); !errors.As(err, &prob) || prob.Status != 503 || prob.RetryAfter != 1 {
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
						w.beat()
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
