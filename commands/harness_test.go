package commands_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// TestMain fails if a goroutine is left when all tests have passed. On a machine under
// load the last ones take their time to end.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		err := goleak.Find()
		for end := time.Now().Add(time.Minute); err != nil && time.Now().Before(end); {
			err = goleak.Find() // it waits between its looks
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left after the tests:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// clock is the tests' time: it stands until it is stepped. As the zero value it
// is the bubble's.
type clock struct{ ms atomic.Int64 }

func newClock(at string) *clock {
	t, err := events.ParseTimeLenient(at)
	if err != nil {
		panic(err)
	}
	c := new(clock)
	c.ms.Store(int64(t))
	return c
}

func (c *clock) now() time.Time {
	if ms := c.ms.Load(); ms != 0 {
		return time.UnixMilli(ms)
	}
	return time.Now()
}

func (c *clock) at() events.Time      { return events.At(c.now()) }
func (c *clock) step(d time.Duration) { c.ms.Add(d.Milliseconds()) }

// dice is randomness that is the same in every run.
type dice struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func newDice(seed byte) *dice { return &dice{r: rand.NewChaCha8([32]byte{seed})} }

func (d *dice) Read(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.Read(p)
}

// node is one control process.
type node struct {
	*commands.Handler
	dir  *projections.Directory
	mux  *http.ServeMux
	uses *[]string // what its callers' uses are on the record, as dirAuth has them
}

// world is a log with a bootstrapped root key, and control nodes on it.
type world struct {
	testing.TB
	log     *logtest.MemLog
	clock   *clock
	root    events.Secret
	rootID  events.KeyID
	secrets []events.Secret // all that were ever shown
	out     *lockedBuffer   // what the nodes logged
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.b.Bytes())
}

const start = "2026-01-06T10:00:00Z"

func newWorld(t testing.TB) *world { t.Helper(); return newWorldAt(t, newClock(start)) }

func newWorldAt(t testing.TB, c *clock) *world { t.Helper(); return newWorldOn(t, c, logtest.New(t)) }

func newWorldOn(t testing.TB, c *clock, log *logtest.MemLog) *world {
	t.Helper()
	w := &world{TB: t, log: log, clock: c, out: new(lockedBuffer)}
	w.log.SetClock(w.clock.now)
	def := events.BuiltinDefinition()
	var err error
	if w.root, err = commands.NewSecret(&def.KeyTypes[0], "", newDice(1)); err != nil {
		t.Fatal(err)
	}
	w.secrets = append(w.secrets, w.root)
	if w.rootID, err = commands.Bootstrap(t.Context(), w.log, w.root, w.clock.at()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.checkSecrets)
	return w
}

// checkSecrets greps everything that is kept for every secret that was shown.
func (w *world) checkSecrets() {
	logtest.CheckNoSecrets(w, w.out.bytes(), w.secrets...)
	for _, r := range w.log.Records() {
		logtest.CheckNoSecrets(w, []byte(r.Aggregate.Subject()+string(r.Document)), w.secrets...)
	}
}

// node starts a control node and stops it with the test.
func (w *world) node(name string) *node { w.Helper(); return w.nodeWith(name, nil) }

// nodeWith is a node whose configuration is changed.
func (w *world) nodeWith(name string, change func(*commands.Config)) *node {
	w.Helper()
	n := &node{dir: projections.NewDirectory(), mux: http.NewServeMux(), uses: new([]string)}
	cfg := commands.Config{
		Log: w.log, Leases: w.log, Dir: n.dir, Confirm: confirms(w.log, w.log.ID(), name), Now: w.clock.now, Rand: newDice(name[0]), Node: events.NodeID(name),
		Logger: slog.New(slog.NewJSONHandler(w.out, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&cfg)
	}
	n.Handler = commands.New(cfg)
	n.Routes(n.mux, dirAuth{n.dir, w.clock, n.uses})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := projections.Follow(ctx, w.log, n.dir); !errors.Is(err, context.Canceled) {
			w.Errorf("the directory stopped: %v", err)
		}
	}()
	w.Cleanup(func() { cancel(); <-done })
	last, err := w.log.Last(w.Context())
	if err == nil {
		err = n.dir.Wait(w.Context(), last)
	}
	if err != nil {
		w.Fatal(err)
	}
	return n
}

// confirms returns what proves the floor for a node.
func confirms(log events.Leases, id events.LogID, name string) func(context.Context) (events.Floor, error) {
	lease := logtest.Lease(id, events.NodeID(name))
	return func(ctx context.Context) (events.Floor, error) {
		g, err := log.Renew(ctx, lease)
		return g.Floor, err
	}
}

// fromHeader says where a request of a test comes from.
const fromHeader = "X-Test-From"

// dirAuth finds the principal behind a bearer secret in the directory, as the
// verifier finds it in its own view.
type dirAuth struct {
	dir   *projections.Directory
	clock *clock
	uses  *[]string // "METHOD /pattern reason" of each call that is let in
}

func (a dirAuth) FindSecret(text string) (start, end int, ok bool) { return a.dir.FindSecret(text) }

func (a dirAuth) Knows(r *http.Request) bool {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	_, ok := a.dir.Digest(events.NewSecret(bearer).Digest())
	return ok
}

func (a dirAuth) Authenticate(r *http.Request, scope, endpoint string) (*api.Caller, error) {
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	id, ok := a.dir.Digest(events.NewSecret(bearer).Digest())
	k, _ := a.dir.Key(id)
	if !ok || k.Keyspace != events.Builtin || k.StatusAt(a.clock.at()) != events.StatusActive {
		return new(api.Caller), api.Errorf(http.StatusUnauthorized, "key_unknown", "want a key of keyspace %q", events.Builtin)
	}
	rules := keyspace.Compile(events.BuiltinDefinition(), nil)
	scopes := k.Grant.Scopes
	for _, id := range k.Grant.Roles {
		role, _ := a.dir.Role(k.Keyspace, k.Tenant, id)
		scopes = append(scopes[:len(scopes):len(scopes)], role.Scopes...)
	}
	p := events.Principal{
		Actor:  events.Actor{Kind: events.ActorKey, ID: k.ID.String()},
		Scopes: rules.Effective(k.KeyType, scopes), IP: netip.MustParseAddr("192.0.2.1"), UserAgent: r.UserAgent(), RequestID: api.RequestID(r),
	}
	if from := r.Header.Get(fromHeader); from != "" {
		p.IP = netip.MustParseAddr(from)
	}
	p.Restrict(k.Resources)
	if !p.Has(scope) {
		return api.NewCaller(p, nil, nil), api.ScopeMissing(scope)
	}
	return api.NewCaller(p, nil, func(outcome events.Reason) { *a.uses = append(*a.uses, endpoint+" "+outcome.String()) }), nil
}

// rootPrincipal is the root key at the endpoint.
func (w *world) rootPrincipal() events.Principal {
	def := events.BuiltinDefinition()
	return events.Principal{
		Actor:  events.Actor{Kind: events.ActorKey, ID: w.rootID.String()},
		Scopes: def.Expand([]string{events.ScopeAdmin}), IP: netip.MustParseAddr("192.0.2.1"), UserAgent: "test",
	}
}

// call is a command of root's, with a command id when key is given.
func (w *world) call(key, what string) *commands.Call {
	c := &commands.Call{Principal: w.rootPrincipal()}
	if key != "" {
		c.Command = commands.CommandID(c.Principal.Actor, key, "TEST", "/", []byte(what))
	}
	return c
}

// acme is the keyspace of the tests.
var acme = keyspace.Definition{
	KeyTypes: []keyspace.KeyType{
		{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_", Defaults: []string{"read"}},
		{Name: "publishable", Environments: []string{"live"}, Prefix: "pk_live_", Ceiling: []string{"upload"}},
		{Name: "secret_test", Environments: []string{"test"}, Prefix: "sk_test_", Alphabet: keyspace.Hex},
	},
	Scopes: []keyspace.ScopeDef{
		{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "upload"}, {Name: "deploy", Level: "division"},
	},
	Resources: []string{"project", "division"},
	Plans:     []keyspace.Plan{{Name: "pro", PerMinute: 600, Burst: 60}},
}

func (w *world) define(n *node, id events.KeyspaceID, d keyspace.Definition) {
	w.Helper()
	if _, _, err := n.DefineKeyspace(w.Context(), w.call("", ""), id, &commands.DefineKeyspace{Definition: d}); err != nil {
		w.Fatal(err)
	}
}

func (w *world) create(n *node, ks events.KeyspaceID, c commands.Create) commands.Done {
	w.Helper()
	done, err := n.Create(w.Context(), w.call("", ""), ks, &c)
	if err != nil {
		w.Fatal(err)
	}
	w.secrets = append(w.secrets, done.Secret)
	return done
}

// load folds the key from what the log holds, past any fault.
func (w *world) load(k *events.Key) (events.Key, []events.Recorded) {
	w.Helper()
	var history []events.Recorded
	for _, r := range w.log.Records() {
		if r.Aggregate == events.KeyAggregate(k.Keyspace, k.Tenant, k.ID) {
			history = append(history, r)
		}
	}
	folded, err := events.FoldKey(history)
	if err != nil {
		w.Fatal(err)
	}
	return folded, history
}

// do sends one request and returns the answer.
func (n *node) do(secret events.Secret, method, path, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+secret.Reveal())
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	n.mux.ServeHTTP(rec, r)
	return rec
}

// member reads one string member of the answer, or of its data.
func member(t testing.TB, rec *httptest.ResponseRecorder, name string) string {
	t.Helper()
	var body map[string]any
	if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
		t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
	}
	if data, ok := body["data"].(map[string]any); ok {
		body = data
	}
	s, _ := body[name].(string)
	return s
}

func ptr[T any](v T) *T { return &v }

// codeOf names what a command ended with: ok, a refusal's code, or the codes of
// every bad field.
func codeOf(err error) string {
	var r *commands.Refusal
	var f input.FieldErrors
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &r):
		return string(r.Code)
	case errors.As(err, &f):
		var s []string
		for _, e := range f {
			s = append(s, e.Field+":"+e.Code)
		}
		return strings.Join(s, " ")
	}
	return err.Error()
}

func newCreate(tenant events.TenantID, name string) commands.Create {
	return commands.Create{Tenant: tenant, Name: name}
}
