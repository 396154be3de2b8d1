package snapshots

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// gate lets everyone in as the principal that it is, if it has the scope.
type gate struct {
	events.Principal
	revoked error // what Recheck returns
}

func (gate) FindSecret(string) (int, int, bool) { return 0, 0, false }
func (gate) Knows(*http.Request) bool           { return true }
func (g gate) Authenticate(_ *http.Request, scope, _ string) (*api.Caller, error) {
	c := api.NewCaller(g.Principal, func() error { return g.revoked }, nil)
	if !g.Has(scope) {
		return c, api.ScopeMissing(scope)
	}
	return c, nil
}

func TestSend(t *testing.T) {
	w := newWorld(t)
	reader := events.Principal{Scopes: []string{events.ScopeKeysRead}}
	var unproven error
	sender := &Sender{Log: w.ID(), Views: []projections.View{w.keys, w.dir}, Proven: func() error { return unproven }, Logger: slog.New(slog.DiscardHandler)}
	ask := func(who events.Principal, path string) *httptest.ResponseRecorder {
		mux := http.NewServeMux()
		sender.Routes(mux, gate{who, nil})
		rec := httptest.NewRecorder()
		mux.ServeHTTP(&deadlined{rec}, httptest.NewRequest("GET", path, nil))
		return rec
	}
	for _, v := range sender.Views {
		if got := ask(reader, "/v1/snapshots/"+v.Name()); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), w.export(v)) {
			t.Errorf("%s: %d with %d bytes", v.Name(), got.Code, got.Body.Len())
		}
	}
	refused := func(status int, code string, who events.Principal, path string) {
		t.Helper()
		if got := ask(who, path); got.Code != status || !strings.Contains(got.Body.String(), code) {
			t.Errorf("%d %s, want %d %s", got.Code, got.Body, status, code)
		}
	}
	const keys = "/v1/snapshots/keys"
	refused(404, "not_found", reader, "/v1/snapshots/uses")
	refused(403, "scope_missing", events.Principal{Scopes: []string{events.ScopeAuditRead}}, keys)
	for _, p := range []events.Principal{{Keyspaces: []events.KeyspaceID{"ks"}}, {Tenants: []events.TenantID{"acme"}}} {
		p.Scopes = reader.Scopes
		refused(403, "beyond_own_power", p, keys)
	}
	unproven = errors.New("still being compared")
	refused(503, "still being compared", reader, keys)
	unproven = nil
	sender.sending.Lock()
	refused(503, codeBusy, reader, keys)
	sender.sending.Unlock()
	w.keys.Refuse(errors.New("wrong"))
	refused(503, "has not read the log", reader, keys)
	if got := ask(reader, "/v1/snapshots/directory"); got.Code != 200 {
		t.Errorf("afterwards: %d %s", got.Code, got.Body)
	}
}

// deadlined is a recorder whose deadline may be set.
type deadlined struct{ *httptest.ResponseRecorder }

// A reader that goes away, or whose key is revoked meanwhile, frees the slot, and gets no
// end that it could take for one.
func TestSendToReaderThatLeaves(t *testing.T) {
	w := newWorld(t)
	sender := &Sender{Log: w.ID(), Views: []projections.View{w.keys}, Logger: slog.New(slog.DiscardHandler)}
	rec := deadlined{httptest.NewRecorder()}
	for name, c := range map[string]struct {
		out     http.ResponseWriter
		revoked error
	}{"leaves": {&gone{rec}, nil}, "is revoked": {rec, errors.New("revoked")}} {
		mux := http.NewServeMux()
		sender.Routes(mux, gate{events.Principal{Scopes: []string{events.ScopeKeysRead}}, c.revoked})
		func() {
			defer func() {
				if got := recover(); got != http.ErrAbortHandler || rec.Body.Len() > 0 {
					t.Errorf("%s: it ends with %v after %d bytes", name, got, rec.Body.Len())
				}
			}()
			mux.ServeHTTP(c.out, httptest.NewRequest("GET", "/v1/snapshots/keys", nil))
		}()
		if !sender.sending.TryLock() {
			t.Fatalf("%s: the slot is taken for good", name)
		}
		sender.sending.Unlock()
	}
}

type gone struct{ deadlined }

func (*gone) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func (deadlined) SetWriteDeadline(time.Time) error { return nil }

// The largest snapshot that Receive takes has a deadline as late as its size allows.
func TestDeadlineOfALargeSnapshot(t *testing.T) {
	for _, c := range []struct {
		n, perSecond int64
		want         time.Duration
	}{{0, slowest, 0}, {1 << 20, slowest, 4 * time.Second}, {projections.MaxSnapshot, slowest, 65_536 * time.Second}, {projections.MaxSnapshot, sendRate, 128 * time.Second}} {
		if got := timeOf(c.n, c.perSecond); got != c.want {
			t.Errorf("%d bytes at %d a second: %v, want %v", c.n, c.perSecond, got, c.want)
		}
	}
}
