package eventlog

import (
	"context"
	"errors"
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

// served reports whether a command was: another try mends that a server was not ready.
func served(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrUnknownOutcome) {
		t.Fatal(err)
	}
	return err == nil
}

// lead makes a server lead the streams that control reads and the one of the leases.
func (f *fabric) lead(l *Log, at int) {
	f.t.Helper()
	name := fmt.Sprint("n", at)
	admin := f.as("admin", f.pw.Admin, at)
	until(f.t, name+" leads", func() bool {
		all := true
		for _, stream := range []string{streams.Life, streams.Lease} {
			ctx, cancel := context.WithTimeout(f.t.Context(), 2*patience)
			si, err := l.confirmed(ctx, stream)
			cancel()
			if err != nil || si.Cluster.Leader != name {
				all = false
				_, _ = admin.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, name), patience)
			}
		}
		return all
	})
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
			f.lead(any, at)
			ctrl := openLog(t, f.attach("ctrl", f.pw.Ctrl, (at+1)%3, (at+2)%3), Options{})
			builtin := events.BuiltinDefinition()
			secret, err := commands.NewSecret(&builtin.KeyTypes[0], "", strings.NewReader(strings.Repeat("x", 1000)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := commands.Bootstrap(t.Context(), ctrl, secret, events.At(time.Now())); err != nil {
				t.Fatal(err)
			}
			healthy := newAttached(t, events.NodeID(fmt.Sprint("healthy", i)), ctrl, 0)
			alone := newAttached(t, events.NodeID(fmt.Sprint("alone", i)), openLog(t, f.as("ctrl", f.pw.Ctrl, at), Options{Timeout: 10 * time.Second}), -30*time.Second)

			space := events.KeyspaceID(fmt.Sprint("acme", i))
			def := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"}}, Scopes: []keyspace.ScopeDef{{Name: "read"}}}
			until(t, "the keyspace is defined", func() bool {
				_, _, err = healthy.control.DefineKeyspace(t.Context(), operatorCall(), space, &commands.DefineKeyspace{Definition: def})
				return served(t, err)
			})
			made, err := healthy.control.Create(t.Context(), operatorCall(), space, &commands.Create{Tenant: "t1", Name: "a", Scopes: &[]string{"read"}})
			until(t, "the key is made", func() bool {
				if err != nil {
					made, err = healthy.control.Create(t.Context(), operatorCall(), space, &commands.Create{Tenant: "t1", Name: "a", Scopes: &[]string{"read"}})
				}
				return served(t, err)
			})
			ask := func() bool {
				d := alone.node.Decide(t.Context(), &verifier.Request{Secret: made.Secret, Keyspace: space})
				return d.Allowed()
			}
			until(t, "the key is allowed", ask)

			f.lead(any, at) // the servers may have elected others meanwhile
			machine := watchStalls(t)
			c.cut(f, at, true)
			cutAt := time.Now()
			defer c.cut(f, at, false)
			var revoked atomic.Int64 // when the revocation was acknowledged, after cutAt
			done := make(chan error, 1)
			go func() {
				for {
					_, err := healthy.control.Change(context.Background(), operatorCall(), "revoke", made.Key.ID, &commands.Revoke{})
					if err == nil || time.Since(cutAt) > patient {
						revoked.Store(int64(time.Since(cutAt)))
						done <- err
						return
					}
				}
			}()
			cell := logtest.NewCell(t, "answers on a deposed leader, "+c.name, 0)
			// What is held back for 20 s has come, and the verifier's bound of 10 s is over.
			goesOn := func() bool {
				since, r := time.Since(cutAt), time.Duration(revoked.Load())
				return since < 24*time.Second || since < patient && (r == 0 || since < r+14*time.Second)
			}
			var lastActive, lastAllowed, slowest time.Duration // after cutAt; slowest is a duration
			var right, refused int
			asking := make(chan struct{})
			go func() {
				defer close(asking)
				for goesOn() {
					if asked := time.Since(cutAt); ask() { // it may be told later
						lastAllowed = asked
						if r := time.Duration(revoked.Load()); r > 0 && lastAllowed > r+10*time.Second {
							cell.Wrong("allowed %s after the cut, revoked and acknowledged %s after it", lastAllowed, r)
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
			}()
			for goesOn() {
				began, stalled := time.Since(cutAt), machine.total()
				acked := time.Duration(revoked.Load())
				status, state, took := alone.get(made.Key.ID)
				slowest = max(slowest, took-(machine.total()-stalled))
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
