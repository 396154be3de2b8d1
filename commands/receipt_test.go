package commands_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
)

// With wait=applied a change answers with a receipt: 202 and incomplete while a node
// may still answer as before, 200 once it has said that it holds the change.
func TestWaitForTheReceipt(t *testing.T) { synctest.Test(t, waitForTheReceipt) }

func waitForTheReceipt(t *testing.T) {
	w := newWorldAt(t, new(clock))
	n := w.nodeWith("control-1", func(c *commands.Config) {
		c.Nodes = receipts.NewObserver(w.log, c.Logger)
		c.Receipts = receipts.NewIssuer(receipts.IssuerConfig{Nodes: c.Nodes, Leases: w.log, Prompts: w.log, Control: "control-1"})
		c.Confirm = func(context.Context) (events.Floor, error) { // this control has no lease of its own
			list, err := w.log.Nodes(t.Context(), 0)
			return list.Floor, err
		}
	})
	w.define(n, "shop", acme)
	done := w.create(n, "shop", commands.Create{Tenant: "acme", Name: "k"})
	edge := logtest.Lease(w.log.ID(), "edge-1")
	if _, err := w.log.Renew(t.Context(), edge); err != nil {
		t.Fatal(err)
	}
	path := "/v1/keys/" + done.Key.ID.String()
	type body struct {
		Data    jsontext.Value `json:"data"`
		Receipt *receipt       `json:"receipt"`
	}
	ask := func(status int, method, target string) *receipt {
		t.Helper()
		rec := n.do(w.root, method, target, "")
		var b body
		if err := json.Unmarshal(rec.Body.Bytes(), &b); err != nil || rec.Code != status {
			t.Fatal(err, rec.Code, rec.Body)
		}
		if method == "GET" {
			r := new(receipt)
			if err := json.Unmarshal(b.Data, r); err != nil {
				t.Fatal(err)
			}
			return r
		}
		return b.Receipt
	}
	for query, field := range map[string]string{"?wait=all": "wait", "?wait_timeout=1s": "wait_timeout", "?wait=applied&wait_timeout=1h": "wait_timeout", "?wait=applied&wait_timeout=x": "wait_timeout"} {
		if rec := n.do(w.root, "DELETE", path+query, ""); rec.Code != http.StatusUnprocessableEntity || !strings.Contains(rec.Body.String(), `"`+field+`"`) {
			t.Errorf("%s: %d %s", query, rec.Code, rec.Body)
		}
	}
	r := ask(http.StatusAccepted, "POST", path+"/disable?wait=applied&wait_timeout=500ms")
	if r == nil || r.Complete || r.Type != "key.disabled" || r.Resource != path || len(r.Nodes) != 1 || r.Nodes[0].Status != "waiting" || r.Signed {
		t.Fatalf("%+v", r)
	}
	if r := ask(http.StatusOK, "POST", path+"/enable"); r != nil {
		t.Errorf("a receipt that nobody asked for: %+v", r)
	}

	// The node hears the question, and answers once it holds the event.
	ctx, stop := context.WithCancel(t.Context())
	listening := make(chan error, 1)
	go func() {
		listening <- w.log.Listen(ctx, func(h events.Head) {
			edge.Applied = h
			_ = w.log.Say(edge)
		})
	}()
	r = ask(http.StatusOK, "DELETE", path+"?wait=applied&wait_timeout=20s")
	if r == nil || !r.Complete || r.Type != "key.revoked" || r.Nodes[0].Status != "applied" || edge.Applied.Size != r.Seq {
		t.Fatalf("%+v", r)
	}
	if again := ask(http.StatusOK, "GET", path+"/receipt"); !again.Complete || again.Event != r.Event || !strings.Contains(again.Note, "complete 1 of 1\n") {
		t.Errorf("%+v, want one of event %s", again, r.Event)
	}
	stop()
	<-listening
	if again := ask(http.StatusOK, "GET", path+"/receipt?wait=applied&wait_timeout=500ms"); again.Complete {
		t.Errorf("complete, though nobody says so any more: %+v", again)
	}
}

// Every command that takes power away can wait for its receipt: a rotation answers with
// the receipt of the old key's end, many revocations with that of the last. Where no
// receipt can be made at all, the answer is the command's own all the same, with the
// secret of a successor.
func TestEveryNarrowingWaitsForTheReceipt(t *testing.T) {
	synctest.Test(t, everyNarrowingWaitsForTheReceipt)
}

func everyNarrowingWaitsForTheReceipt(t *testing.T) {
	w := newWorldAt(t, new(clock))
	list := &lostList{Leases: w.log}
	n := w.nodeWith("control-1", func(c *commands.Config) {
		c.Nodes = receipts.NewObserver(list, c.Logger)
		c.Receipts = receipts.NewIssuer(receipts.IssuerConfig{Nodes: c.Nodes, Leases: w.log, Control: "control-1"})
		c.Confirm = func(context.Context) (events.Floor, error) { // this control has no lease of its own
			list, err := w.log.Nodes(t.Context(), 0)
			return list.Floor, err
		}
	})
	w.define(n, "shop", acme)
	type body struct {
		Data    jsontext.Value `json:"data"`
		Receipt *receipt       `json:"receipt"`
		URL     string         `json:"receipt_url"`
		Confirm string         `json:"confirm"`
	}
	ask := func(status int, method, target, in string) (b body) {
		t.Helper()
		rec := n.do(w.root, method, target, in)
		if err := json.Unmarshal(rec.Body.Bytes(), &b); err != nil || rec.Code != status {
			t.Fatal(err, method, target, rec.Code, rec.Body)
		}
		return b
	}
	made := func(name string) string {
		done := w.create(n, "shop", commands.Create{Tenant: "acme", Name: name})
		return "/v1/keys/" + done.Key.ID.String()
	}
	const shop = "/v1/keyspaces/shop"
	key := made("k")
	narrowings := func(status int) {
		t.Helper()
		for _, c := range []struct {
			status             int
			method, path, in   string
			resource, lastType string
		}{
			{201, "POST", key + "/rotate", "", key, "key.rotated"},
			{200, "PUT", made("limit"+fmt.Sprint(status)) + "/limit", `{"limit":{"per_minute":5,"burst":5}}`, "", "key.limit_updated"},
			{200, "PATCH", made("patch" + fmt.Sprint(status)), `{"expires_in":"1h"}`, "", "key.expiry_changed"},
			{200, "PUT", shop + "/tenants/acme/limit", fmt.Sprintf(`{"limit":{"per_minute":%d,"burst":5}}`, status+1), shop + "/tenants/acme", "tenant.limit_updated"},
			{200, "PUT", shop + "/tenants/acme/roles/ci", fmt.Sprintf(`{"scopes":[],"description":"%d"}`, status), shop + "/tenants/acme/roles/ci", "role.defined"},
			{200, "DELETE", shop + "/tenants/acme/roles/ci", "", shop + "/tenants/acme/roles/ci", "role.deleted"},
		} {
			want := status
			if status == 0 {
				want = c.status
			}
			b := ask(want, c.method, c.path+"?wait=applied&wait_timeout=20s", c.in)
			if c.resource == "" {
				c.resource = strings.TrimSuffix(c.path, "/limit")
			}
			if b.URL != c.resource+"/receipt" {
				t.Errorf("%s %s: receipt_url %s", c.method, c.path, b.URL)
			}
			if c.lastType == "key.rotated" && !strings.Contains(string(b.Data), `"key":"`) {
				t.Errorf("the secret of the successor is lost: %s", b.Data)
			}
			r := b.Receipt
			if status != 0 {
				if r != nil {
					t.Errorf("%s %s: a receipt of a list that cannot be read: %+v", c.method, c.path, r)
				}
				list.lost.Store(false)
				r = new(receipt)
				if err := json.Unmarshal(ask(200, "GET", b.URL, "").Data, r); err != nil {
					t.Fatal(err)
				}
				list.lost.Store(true)
			}
			if r == nil || !r.Complete || string(r.Type) != c.lastType || r.Resource != c.resource {
				t.Errorf("%s %s: %+v", c.method, c.path, r)
			}
		}
	}
	narrowings(0)
	list.lost.Store(true)
	key = made("again")
	narrowings(http.StatusAccepted)
	list.lost.Store(false)

	for i := range 3 {
		made(fmt.Sprint("many", i))
	}
	preview := ask(200, "POST", "/v1/keys/revoke?wait=applied", `{"keyspace":"shop"}`)
	if preview.Receipt != nil || preview.URL != "" {
		t.Errorf("a preview has a receipt: %+v", preview)
	}
	var count struct {
		Total int `json:"total"`
	}
	rec := n.do(w.root, "POST", "/v1/keys/revoke", `{"keyspace":"shop"}`)
	if err := json.Unmarshal(rec.Body.Bytes(), &count); err != nil {
		t.Fatal(err)
	}
	b := ask(200, "POST", "/v1/keys/revoke?wait=applied", fmt.Sprintf(`{"keyspace":"shop","confirm":%q,"count":%d}`, preview.Confirm, count.Total))
	if b.Receipt == nil || !b.Receipt.Complete || b.Receipt.Type != "key.revoked" || b.URL != b.Receipt.Resource+"/receipt" || b.Receipt.Seq != w.log.Records()[len(w.log.Records())-1].Seq {
		t.Errorf("%+v %s", b.Receipt, b.URL)
	}
	if rec := n.do(w.root, "GET", shop+"/tenants/nobody/receipt", ""); rec.Code != http.StatusNotFound {
		t.Errorf("a tenant of which nothing was changed: %d %s", rec.Code, rec.Body)
	}
	if rec := n.do(w.root, "GET", shop+"/tenants/acme/roles/none/receipt", ""); rec.Code != http.StatusNotFound {
		t.Errorf("a role that was never defined: %d %s", rec.Code, rec.Body)
	}
	r := new(receipt)
	if err := json.Unmarshal(ask(200, "GET", shop+"/receipt", "").Data, r); err != nil || r.Type != "keyspace.defined" || !r.Complete {
		t.Errorf("%+v, %v", r, err)
	}
}

// pipes is a listener whose connections stay within the process, so that a bubble's
// clock moves while both ends wait.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, open := <-p
	if !open {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return new(net.TCPAddr) }

func (p pipes) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	p <- server
	return client, nil
}

// A wait outlasts the deadlines that the server has for other requests: its answer may
// hold a secret that is told once.
func TestAWaitOutlastsTheDeadlinesOfTheServer(t *testing.T) {
	synctest.Test(t, aWaitOutlastsTheDeadlinesOfTheServer)
}

func aWaitOutlastsTheDeadlinesOfTheServer(t *testing.T) {
	w := newWorldAt(t, new(clock))
	n := w.nodeWith("control-1", func(c *commands.Config) {
		c.Confirm = func(context.Context) (events.Floor, error) { // this control has no lease of its own
			list, err := w.log.Nodes(t.Context(), 0)
			return list.Floor, err
		}
	})
	w.define(n, "shop", acme)
	key := w.create(n, "shop", commands.Create{Tenant: "acme", Name: "k"}).Key.ID
	if _, err := w.log.Renew(t.Context(), logtest.Lease(w.log.ID(), "edge-1")); err != nil {
		t.Fatal(err)
	}
	conns := make(pipes)
	srv := &http.Server{Handler: api.Handler(n.mux), ReadTimeout: 2 * time.Second, WriteTimeout: 2 * time.Second} // shorter than the wait
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(conns) }()
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	}()
	client := http.Client{Transport: &http.Transport{DialContext: conns.dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://control-1/v1/keys/"+key.String()+"/rotate?wait=applied&wait_timeout=2500ms", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.root.Reveal())
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("the secret is lost: %v", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusAccepted || !strings.Contains(string(b), `"complete":false`) || !strings.Contains(string(b), `"key":"`) {
		t.Errorf("%v, %d %s", err, resp.StatusCode, b)
	}
}

// lostList is a log of leases whose list cannot be read at times.
type lostList struct {
	receipts.Leases
	lost atomic.Bool
}

func (l *lostList) Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error) {
	if l.lost.Load() {
		return events.NodeLeases{}, events.ErrUnavailable
	}
	return l.Leases.Nodes(ctx, atLeast)
}

type receipt = commands.ReceiptView
