package commands_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// adminKey makes a key of the built-in keyspace and returns its secret and id.
func (w *world) adminKey(n *node, name string, change func(*commands.Create)) (events.Secret, events.KeyID) {
	w.Helper()
	c := commands.Create{Tenant: "operators", Name: name, Scopes: &[]string{events.ScopeAdmin}}
	if change != nil {
		change(&c)
	}
	done := w.create(n, events.Builtin, c)
	return done.Secret, done.Key.ID
}

// asks posts a RevokeMany and returns the page, or the problem's code.
func (n *node) asks(t *testing.T, secret events.Secret, c commands.RevokeMany) (p commands.RevokePage, code string) {
	t.Helper()
	body, err := json.Marshal(&c, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	rec := n.do(secret, "POST", "/v1/keys/revoke", string(body))
	if rec.Code != http.StatusOK {
		return p, fmt.Sprint(rec.Code, " ", member(t, rec, "code"))
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &p, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	return p, "ok"
}

// fates are the names of the keys with what became of each.
func fates(p commands.RevokePage) string {
	var out []string
	for _, k := range p.Data {
		s := k.Name + " " + string(k.Status)
		for _, e := range k.Errors {
			s += " " + e.Code
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// TestRevokeManyRevokesWhatWasPreviewed: the keys that a stolen operator key has
// made, in every keyspace, and neither more nor fewer than the preview showed.
func TestRevokeManyRevokesWhatWasPreviewed(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	w.define(n, "zeta", acme)
	op, opID := w.adminKey(n, "stolen", nil)
	mine := w.create(n, "acme", newCreate("t1", "of root")).Key
	make := func(ks, name string) events.KeyID {
		t.Helper()
		rec := n.do(op, "POST", "/v1/keyspaces/"+ks+"/keys", `{"tenant":"t1","name":"`+name+`"}`)
		w.secrets = append(w.secrets, events.NewSecret(member(t, rec, "key")))
		id, err := events.ParseKeyID(member(t, rec, "id"))
		if err != nil {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		return id
	}
	a, b := make("acme", "a"), make("acme", "b")
	make("zeta", "c")
	make(string(events.Builtin), "d")
	rotated := n.do(op, "POST", "/v1/keys/"+mine.ID.String()+"/rotate", `{"overlap":"1h"}`)
	w.secrets = append(w.secrets, events.NewSecret(member(t, rotated, "key"))) // a secret that the operator has seen
	n.do(w.root, "POST", "/v1/keys/"+b.String()+"/disable", "")

	list := func(path string) (names []string) {
		t.Helper()
		rec := n.do(w.root, "GET", path, "")
		var page struct {
			Data []struct {
				Name string `json:"name"`
			} `json:"data"`
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &page); err != nil || rec.Code != 200 {
			t.Fatalf("%s: %d %s", path, rec.Code, rec.Body)
		}
		for _, k := range page.Data {
			names = append(names, k.Name)
		}
		return names
	}
	if got := list("/v1/keys?created_by=" + opID.String()); !slices.Equal(got, []string{"a", "b", "c", "d", "of root"}) {
		t.Errorf("in all keyspaces: %q", got)
	}
	if got := list("/v1/keyspaces/acme/keys?status=active&created_by=" + opID.String()); !slices.Equal(got, []string{"a", "of root"}) {
		t.Errorf("in one: %q", got)
	}
	if rec := n.do(w.root, "GET", "/v1/keys?created_by=stolen", ""); rec.Code != 422 || !strings.Contains(rec.Body.String(), `"field":"created_by"`) {
		t.Errorf("created_by of no key: %d %s", rec.Code, rec.Body)
	}

	ask := commands.RevokeMany{CreatedBy: opID.String(), Code: events.RevokeCompromise, Reason: "incident 7"}
	size := len(w.log.Records())
	preview, code := n.asks(t, w.root, ask)
	if code != "ok" || preview.Total != 5 || preview.Confirm == "" || preview.NextCursor != nil || len(w.log.Records()) != size ||
		fates(preview) != "a acceptable, b acceptable, c acceptable, d acceptable, of root acceptable" {
		t.Fatalf("preview: %s, %d of %d: %s; %d events", code, len(preview.Data), preview.Total, fates(preview), len(w.log.Records())-size)
	}
	late := make("acme", "late")
	n.do(w.root, "DELETE", "/v1/keys/"+a.String(), "")
	size = len(w.log.Records())

	for name, bad := range map[string]struct {
		change func(*commands.RevokeMany)
		want   string
	}{
		"another count":       {func(c *commands.RevokeMany) { c.Count = ptr(6) }, "409 confirm"},
		"no count":            {func(c *commands.RevokeMany) { c.Count = nil }, "422 invalid"},
		"a count alone":       {func(c *commands.RevokeMany) { c.Confirm = "" }, "422 invalid"},
		"another operator":    {func(c *commands.RevokeMany) { c.CreatedBy = w.rootID.String() }, "409 confirm"},
		"another keyspace":    {func(c *commands.RevokeMany) { c.Keyspace = "acme" }, "409 confirm"},
		"a token of nothing":  {func(c *commands.RevokeMany) { c.Confirm = "yes" }, "409 confirm"},
		"a token cut off":     {func(c *commands.RevokeMany) { c.Confirm = c.Confirm[:8] }, "409 confirm"},
		"nothing asked for":   {func(c *commands.RevokeMany) { c.CreatedBy = "" }, "422 invalid"},
		"no key":              {func(c *commands.RevokeMany) { c.CreatedBy = "stolen" }, "422 invalid"},
		"a keyspace of none":  {func(c *commands.RevokeMany) { c.Keyspace = "nowhere" }, "404 not_found"},
		"a cursor of nothing": {func(c *commands.RevokeMany) { c.Cursor = "x" }, "422 cursor"},
		"a code of none":      {func(c *commands.RevokeMany) { c.Code = "why" }, "422 invalid"},
	} {
		c := ask
		c.Confirm, c.Count = preview.Confirm, ptr(5)
		bad.change(&c)
		if _, code := n.asks(t, w.root, c); code != bad.want || len(w.log.Records()) != size {
			t.Errorf("%s: %s, want %s; %d events", name, code, bad.want, len(w.log.Records())-size)
		}
	}

	ask.Confirm, ask.Count = preview.Confirm, ptr(5)
	if _, code := n.asks(t, op, ask); code != "409 confirm" {
		t.Errorf("by another caller: %s", code)
	}
	done, code := n.asks(t, w.root, ask)
	if code != "ok" || fates(done) != "b revoked, c revoked, d revoked, of root revoked" || done.Total != 5 || done.Position == nil || done.Confirm != "" {
		t.Fatalf("%s: %s of %d", code, fates(done), done.Total)
	}
	if k, _ := n.dir.Key(late); k.Status != events.StatusActive {
		t.Errorf("the key made after the preview is %s", k.Status)
	}
	if k, _ := n.dir.Key(b); k.RevokeCode != events.RevokeCompromise || k.RevokeNote != "incident 7" {
		t.Errorf("revoked with %s, %q", k.RevokeCode, k.RevokeNote)
	}
	if k, _ := n.dir.Key(mine.ID); k.Status != events.StatusActive {
		t.Errorf("root's own key, of which the successor ended, is %s", k.Status)
	}
	if again, code := n.asks(t, w.root, ask); code != "ok" || len(again.Data) != 0 {
		t.Errorf("again: %s, %s", code, fates(again))
	}
	logtest.CheckLog(t, w.log)
}

// TestRevokeManyKeepsAnAdministrator: the guards look at each key as it comes.
func TestRevokeManyKeepsAnAdministrator(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	first, _ := w.adminKey(n, "first", nil)
	w.adminKey(n, "second", nil)
	ends, _ := w.adminKey(n, "ends", func(c *commands.Create) { c.ExpiresIn = ptr("1h") })
	weak, _ := w.adminKey(n, "weak", func(c *commands.Create) { c.Scopes = &[]string{events.ScopeKeysWrite} })
	if rec := n.do(first, "DELETE", "/v1/keys/"+w.rootID.String(), ""); rec.Code != 200 {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	ask := commands.RevokeMany{Keyspace: events.Builtin, CreatedBy: w.rootID.String()}
	preview, code := n.asks(t, weak, ask)
	if code != "ok" || fates(preview) != "first refused beyond_own_power, second refused beyond_own_power, ends refused beyond_own_power, weak refused beyond_own_power" {
		t.Errorf("by a key without their power: %s, %s", code, fates(preview))
	}
	if preview, code = n.asks(t, ends, ask); code != "ok" || preview.Total != 4 || fates(preview) != "first acceptable, second acceptable, ends refused beyond_own_power, weak acceptable" {
		t.Fatalf("preview: %s, %s", code, fates(preview))
	}
	ask.Confirm, ask.Count = preview.Confirm, ptr(4)
	if done, code := n.asks(t, ends, ask); code != "ok" || fates(done) != "first revoked, second refused last_admin, ends refused beyond_own_power, weak revoked" {
		t.Errorf("%s: %s", code, fates(done))
	}
	logtest.CheckLog(t, w.log)
}

// TestRevokeManyByPages: many keys end page by page, under one confirmation.
func TestRevokeManyByPages(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	var c commands.Import
	for i := range 2*commands.MaxRevoke + 7 {
		c.Keys = append(c.Keys, importKey(fmt.Sprintf("the secret of key %d", i), "t1", fmt.Sprintf("key %d", i)))
	}
	w.imports(n, &c)
	w.imports(n, &commands.Import{Keys: []commands.ImportKey{importKey("of another tenant", "t2", "kept")}})
	ask := commands.RevokeMany{Tenant: "t1", CreatedBy: w.rootID.String()}
	seen := map[events.KeyID]bool{}
	first, _ := n.asks(t, w.root, ask)
	for p, pages := first, 1; ; pages++ {
		for _, k := range p.Data {
			seen[k.ID] = true
		}
		if p.Total != len(c.Keys) {
			t.Errorf("total %d", p.Total)
		}
		if p.NextCursor == nil {
			if pages != 3 || len(seen) != len(c.Keys) {
				t.Errorf("preview: %d keys on %d pages", len(seen), pages)
			}
			break
		}
		ask.Cursor = *p.NextCursor
		p, _ = n.asks(t, w.root, ask)
	}
	ask.Cursor, ask.Confirm, ask.Count = "", first.Confirm, ptr(first.Total)
	revoked := 0
	for {
		p, code := n.asks(t, w.root, ask)
		if code != "ok" {
			t.Fatal(code)
		}
		for _, k := range p.Data {
			if k.Status == commands.RevokeDone && seen[k.ID] {
				revoked++
			}
		}
		if p.NextCursor == nil {
			break
		}
		ask.Cursor = *p.NextCursor
	}
	live := 0
	for k := range n.dir.All("acme") {
		if k.Status == events.StatusActive {
			live++
		}
	}
	if revoked != len(c.Keys) || live != 1 {
		t.Errorf("%d revoked, %d live", revoked, live)
	}
	logtest.CheckLog(t, w.log)
}

// TestReceiptCoversKeysThatEndedMeanwhile: a key of the page that another request revokes
// before its turn comes is told as revoked, so the page's position and receipt are those
// of that event at the earliest.
func TestReceiptCoversKeysThatEndedMeanwhile(t *testing.T) {
	w := newWorld(t)
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	key := w.create(n, "acme", newCreate("t1", "k")).Key.ID
	ask := commands.RevokeMany{Keyspace: "acme"}
	preview, code := n.asks(t, w.root, ask)
	if code != "ok" || preview.Total != 1 || preview.Position != nil || preview.ReceiptURL != "" {
		t.Fatalf("%s: %+v", code, preview)
	}
	ask.Confirm, ask.Count = preview.Confirm, ptr(1)
	pause := w.log.PauseNext(logtest.OpLoad, logtest.AfterEffect) // the page is read
	result := make(chan commands.RevokePage)
	go func() {
		page, _ := n.asks(t, w.root, ask)
		result <- page
	}()
	<-pause.Entered()
	done, err := other.Change(t.Context(), w.call("", ""), "revoke", key, &commands.Revoke{})
	if err != nil {
		t.Fatal(err)
	}
	pause.Resume()
	page := <-result
	if fates(page) != "k revoked" || page.ReceiptURL != "/v1/keys/"+key.String()+"/receipt" || page.Position == nil || page.Position.Seq != done.Seq {
		t.Errorf("%s, %+v, %q, want the event at %d", fates(page), page.Position, page.ReceiptURL, done.Seq)
	}
}
