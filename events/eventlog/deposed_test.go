package eventlog

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier"
)

// operator lets every request in with all power.
type operator struct{}

func (operator) FindSecret(string) (start, end int, ok bool) { return 0, 0, false }
func (operator) Knows(*http.Request) bool                    { return true }
func (operator) Authenticate(*http.Request, string, string) (*api.Caller, error) {
	return api.NewCaller(operatorCall().Principal, nil, nil), nil
}

func operatorCall() *commands.Call {
	def := events.BuiltinDefinition()
	return &commands.Call{Principal: events.Principal{Actor: events.Actor{Kind: events.ActorSystem, ID: "test"},
		Scopes: def.Expand([]string{events.ScopeAdmin}), IP: netip.MustParseAddr("192.0.2.1")}}
}

// attached is control and a verifier on one connection.
type attached struct {
	control *commands.Handler
	mux     *http.ServeMux
	node    *verifier.Node
}

func newAttached(t *testing.T, name events.NodeID, log *Log, skew time.Duration) *attached {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	keys, dir := projections.NewKeys(), projections.NewDirectory()
	ledger := verifier.NewLedger(verifier.LedgerConfig{Sink: log, Node: name, Log: log.ID(), Logger: quiet, Drain: 100 * time.Millisecond})
	p := &attached{mux: http.NewServeMux()}
	p.node = verifier.NewNode(verifier.NodeConfig{View: keys, Ledger: ledger, Leases: log, Log: log.ID(), Logger: quiet,
		Now: func() time.Time { return time.Now().Add(skew) }})
	p.control = commands.New(commands.Config{Log: log, Leases: log, Confirm: p.node.Confirm, Dir: dir, Node: name, Logger: quiet})
	p.control.Routes(p.mux, operator{})
	for _, run := range []func(context.Context) error{
		func(ctx context.Context) error { return projections.Follow(ctx, log, keys, dir) }, p.node.RunLease, ledger.Run,
	} {
		stop := beside(t, run)
		t.Cleanup(func() { _ = stop() })
	}
	until(t, string(name)+" is ready", func() bool { return p.node.Ready() == nil })
	return p
}

// get returns the status of the answer about a key, its state and how long it took.
func (p *attached) get(id events.KeyID) (status int, state string, took time.Duration) {
	began := time.Now()
	rec := httptest.NewRecorder()
	p.mux.ServeHTTP(rec, httptest.NewRequest("GET", "/v1/keys/"+id.String(), nil))
	for _, s := range []string{"active", "revoked"} {
		if strings.Contains(rec.Body.String(), `"status":"`+s+`"`) {
			state = s
		}
	}
	return rec.Code, state, time.Since(began)
}

// Control and a verifier that are attached to a server which is cut off from the
// others, or heard by them 20 s late, while it leads the log: control answers what is
// right or 503, soon either way; the verifier allows nothing later than its bound
// after a revocation was acknowledged, with its clock half a minute behind too.
func TestDeposedLeader(t *testing.T) {
	if testing.Short() {
		t.Skip("two cuts of half a minute")
	}
	t.Parallel()
	for i, c := range []struct {
		name string
		cut  func(f *fabric, at int, on bool)
	}{
		{"cut off", (*fabric).cut},
		{"late", func(f *fabric, at int, on bool) {
			for j := range 3 {
				for _, p := range []*proxy{f.links[at][j], f.links[j][at]} {
					if p == nil {
						continue
					}
					p.slow.Store(0)
					if on {
						p.slow.Store(int64(20 * time.Second))
					} else {
						p.cut()
					}
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFabric(t)
			f.ready()
			any := openLog(t, f.as("ctrl", f.pw.Ctrl, 0, 1, 2), Options{})
			at := f.leader(any)
			stepdown := fmt.Sprintf(`{"placement":{"preferred":"n%d"}}`, at)
			if _, err := f.as("admin", f.pw.Admin, at).Request("$JS.API.STREAM.LEADER.STEPDOWN."+streams.Lease, []byte(stepdown), 10*time.Second); err != nil {
				t.Fatal(err)
			}
			ctrl := openLog(t, f.as("ctrl", f.pw.Ctrl, (at+1)%3, (at+2)%3), Options{Timeout: 20 * time.Second})
			builtin := events.BuiltinDefinition()
			secret, err := commands.NewSecret(&builtin.KeyTypes[0], "", strings.NewReader(strings.Repeat("x", 1000)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := commands.Bootstrap(t.Context(), ctrl, secret, events.At(time.Now())); err != nil {
				t.Fatal(err)
			}
			healthy := newAttached(t, events.NodeID(fmt.Sprint("healthy", i)), ctrl, 0)
			alone := newAttached(t, events.NodeID(fmt.Sprint("alone", i)), openLog(t, f.as("ctrl", f.pw.Ctrl, at), Options{}), -30*time.Second)

			space := events.KeyspaceID(fmt.Sprint("acme", i))
			def := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"}}, Scopes: []keyspace.ScopeDef{{Name: "read"}}}
			if _, _, err := healthy.control.DefineKeyspace(t.Context(), operatorCall(), space, &commands.DefineKeyspace{Definition: def}); err != nil {
				t.Fatal(err)
			}
			made, err := healthy.control.Create(t.Context(), operatorCall(), space, &commands.Create{Tenant: "t1", Name: "a", Scopes: &[]string{"read"}})
			if err != nil {
				t.Fatal(err)
			}
			ask := func() bool {
				d := alone.node.Decide(t.Context(), &verifier.Request{Secret: made.Secret, Keyspace: space})
				return d.Allowed()
			}
			until(t, "the key is allowed", ask)

			c.cut(f, at, true)
			cutAt := time.Now()
			defer c.cut(f, at, false)
			var revoked atomic.Int64 // when the revocation was acknowledged, after cutAt
			done := make(chan error, 1)
			go func() {
				for {
					_, err := healthy.control.Change(context.Background(), operatorCall(), "revoke", made.Key.ID, &commands.Revoke{})
					if err == nil || time.Since(cutAt) > 40*time.Second {
						revoked.Store(int64(time.Since(cutAt)))
						done <- err
						return
					}
				}
			}()
			cell := logtest.NewCell(t, "answers on a deposed leader, "+c.name, 0)
			var lastActive, lastAllowed, slowest time.Duration // after cutAt
			var right, refused int
			asking := make(chan struct{})
			go func() {
				defer close(asking)
				for time.Since(cutAt) < 30*time.Second {
					if ask() {
						lastAllowed = time.Since(cutAt)
						if r := time.Duration(revoked.Load()); r > 0 && lastAllowed > r+10*time.Second {
							cell.Wrong("allowed %s after the cut, revoked and acknowledged %s after it", lastAllowed, r)
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
			for time.Since(cutAt) < 30*time.Second {
				began := time.Since(cutAt)
				acked := time.Duration(revoked.Load())
				status, state, took := alone.get(made.Key.ID)
				slowest = max(slowest, took)
				switch {
				case status == 503:
					refused++
				case status == 200 && (state == "revoked" || acked == 0):
					right++
				default:
					cell.Wrong("%s after the cut: %d %s, and the revocation was acknowledged after %s", began, status, state, acked)
				}
				if state == "active" {
					lastActive = time.Since(cutAt)
				}
				time.Sleep(50 * time.Millisecond)
			}
			<-asking
			cell.Tried(right + refused)
			if err := <-done; err != nil {
				t.Fatalf("the majority takes no revocation: %v", err)
			}
			t.Logf("revoked %s after the cut; control showed it active until %s, %d right answers and %d of 503, the slowest took %s; allowed until %s",
				time.Duration(revoked.Load()), lastActive, right, refused, slowest, lastAllowed)
			if slowest > 5*time.Second {
				t.Errorf("an answer took %s", slowest)
			}
			c.cut(f, at, false)
			until(t, "control is right again", func() bool {
				status, state, _ := alone.get(made.Key.ID)
				return status == 200 && state == "revoked"
			})
		})
	}
}
