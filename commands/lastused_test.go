package commands_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
)

// TestUnknownIsNotNever: last_used_at is null for a key that was never used, and
// absent where that is not known.
func TestUnknownIsNotNever(t *testing.T) {
	w := newWorld(t)
	var used map[events.KeyID]events.Time
	var down error
	n := w.nodeWith("one", func(c *commands.Config) {
		c.LastUsed = func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error) { return used, down }
	})
	w.define(n, "acme", acme)
	created := n.do(w.root, "POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"a"}`, "Idempotency-Key", "k1")
	w.secrets = append(w.secrets, events.NewSecret(member(t, created, "key")))
	id, err := events.ParseKeyID(member(t, created, "id"))
	if err != nil {
		t.Fatal(err)
	}
	const never, known = `"last_used_at":null`, `"last_used_at":"2026-01-06T10:00:00.000Z"`
	check := func(what string, rec *httptest.ResponseRecorder, want string) {
		t.Helper()
		got := rec.Body.String()
		if rec.Code/100 != 2 || want != "" && !strings.Contains(got, want) || want == "" && strings.Contains(got, "last_used_at") {
			t.Errorf("%s: %d %s, want %q", what, rec.Code, got, want)
		}
	}
	path := "/v1/keys/" + id.String()
	check("created", created, never)
	check("created again", n.do(w.root, "POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"a"}`, "Idempotency-Key", "k1"), "")
	check("never used", n.do(w.root, "GET", path, ""), never)
	used = map[events.KeyID]events.Time{id: w.clock.at()}
	check("used", n.do(w.root, "GET", path, ""), known)
	check("in a list", n.do(w.root, "GET", "/v1/keyspaces/acme/keys", ""), known)
	check("changed", n.do(w.root, "PATCH", path, `{"name":"b"}`), "")
	check("as it was", n.do(w.root, "GET", path+"?as_of="+start, ""), "")
	down = errors.New("the copy is away")
	check("not known", n.do(w.root, "GET", path, ""), "")
	check("not known in a list", n.do(w.root, "GET", "/v1/keyspaces/acme/keys", ""), "")
}
