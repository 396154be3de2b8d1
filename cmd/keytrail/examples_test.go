package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events/tree"
)

// The order in which the examples of the document make one story: what a request
// names exists by then. TestExamples insists that no operation is missing.
var story = strings.Fields(`health ready metrics openapi
	defineKeyspace listKeyspaces getKeyspace createKey listKeys getKey getKeyHistory importKeys
	verify verifyBatch authorize preflight
	patchKey assignScopes assignResources setAllowlist setLimit disableKey enableKey
	defineRole getRole listRoles deleteRole getRoleReceipt setTenantLimit getTenant getTenantReceipt getKeyspaceReceipt
	getCheckpoint getCheckpointKeys getTile getPartialTile
	listNodes getSnapshot
	listEvents listUses getUsage listBlocks exportRecord getExport
	rotateKey revokeKey getKeyReceipt listAllKeys revokeKeys`)

// TestExamples sends every example of a request in openapi.v1.json to a running
// keytrail: each operation answers with its documented success, and a request
// that it cannot accept with a status of 4xx that it documents. That each answer
// has the documented form is the contract's business (RoundTrip).
func TestExamples(t *testing.T) {
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1")
	doc := answers.doc
	byID := map[string]*operation{}
	for _, o := range doc.operations {
		byID[o.id] = o
	}
	if want, got := slices.Sorted(maps.Keys(byID)), slices.Sorted(slices.Values(story)); !slices.Equal(got, want) {
		t.Fatalf("the story has %v, the document %v", got, want)
	}
	e := &example{t: t, p: p, stands: map[string]string{}}
	for _, id := range story {
		o := byID[id]
		if id == "getCheckpoint" {
			fillTile(t, p)
		}
		e.refused(o)
		e.broken(o)
		got := e.send(o, nil)
		if id == "verify" && got["allowed"] != true {
			t.Errorf("the key of the example may not do what it is asked for: %v", got)
		}
		if id == "createKey" {
			data := got["data"].(map[string]any)
			e.stands["key_01JH2Q8X5T6V7W8Y9Z0ABCDEFG"] = data["id"].(string)
			e.stands["sk_live_8FjK..."] = data["key"].(string)
			e.stands["2026-01-06T10:00:00Z"] = time.Now().UTC().Format(time.RFC3339Nano)
		}
		// What a query may say besides, one at a time. It is tried on what only
		// reads, and on a definition, which may be sent again.
		for _, param := range o.parameters {
			v, ok := param["example"]
			if !ok || param["in"] != "query" || o.method != http.MethodGet && o.method != "" && id != "defineKeyspace" {
				continue
			}
			e.send(o, url.Values{param["name"].(string): {fmt.Sprint(e.fill(v))}})
		}
	}
	if e.tries < 2000 {
		t.Errorf("only %d broken requests were tried", e.tries)
	}
	p.stop(t)
}

// fillTile imports so many keys that the log's tree has a full tile, and waits until
// that is signed.
func fillTile(t *testing.T, p *proc) {
	t.Helper()
	for batch := range 3 {
		var keys []any
		for i := range 100 {
			name := fmt.Sprintf("legacy-%d-%d", batch, i)
			keys = append(keys, map[string]any{"digest": hexDigest(name), "tenant": "acme", "name": name, "scopes": []string{"read"}})
		}
		if status, _, got := p.proved(t, "POST", "/v1/keyspaces/scribe-sight/keys/import", nil, map[string]any{"keys": keys}); status != http.StatusOK {
			t.Fatalf("%d %s", status, got)
		}
	}
	eventually(t, func() string {
		_, _, raw := p.raw(t, http.MethodGet, "/v1/log/checkpoint", nil, nil)
		if head, err := tree.ReadHead(raw); err != nil || head.Size < tree.TileWidth {
			return fmt.Sprintf("the newest checkpoint: %v\n%s", err, raw)
		}
		return ""
	})
}

// example sends what the document shows, with the ids of this run.
type example struct {
	t      *testing.T
	p      *proc
	stands map[string]string // what an example's text stands for here
	tries  int               // broken requests
	wrote  string            // the position of the last write
}

func (e *example) fill(v any) any {
	switch v := v.(type) {
	case string:
		if s, ok := e.stands[v]; ok {
			return s
		}
	case map[string]any:
		out := map[string]any{}
		for name, member := range v {
			out[name] = e.fill(member)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = e.fill(v[i])
		}
		return out
	}
	return v
}

// target is the path of an operation, with the examples of its parameters.
func (e *example) target(o *operation) string {
	path := o.path
	for _, param := range o.parameters {
		if param["in"] != "path" {
			continue
		}
		v, ok := param["example"]
		if !ok {
			e.t.Fatalf("%s: the parameter %s has no example", o.id, param["name"])
		}
		path = strings.Replace(path, "{"+param["name"].(string)+"}", url.PathEscape(fmt.Sprint(e.fill(v))), 1)
	}
	return path
}

// send sends the operation's example and insists on the documented success.
func (e *example) send(o *operation, query url.Values) map[string]any {
	e.t.Helper()
	header := map[string]string{}
	if o.id == "authorize" { // its credential stands where the keyspace says
		header["Authorization"] = "Bearer " + e.stands["sk_live_8FjK..."]
		header["X-Forwarded-For"] = "203.0.113.7"
	}
	var body any
	if spec, ok := o.spec["requestBody"].(map[string]any); ok {
		v, ok := spec["content"].(map[string]any)["application/json"].(map[string]any)["example"]
		if !ok {
			e.t.Fatalf("%s: the request has no example", o.id)
		}
		b, err := json.Marshal(e.fill(v)) // numbers as the document writes them
		if err != nil {
			e.t.Fatal(err)
		}
		body = string(b)
	}
	method := o.method
	if method == "" {
		method = http.MethodGet
	}
	path := e.target(o)
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	status, h, raw := e.p.proved(e.t, method, path, header, body)
	if id := h.Get("Keytrail-Export-Id"); id != "" {
		e.stands["01JH2Q8X5T6V7W8Y9Z0EXP0RT1"] = id
		eventually(e.t, func() string { // the copy has it a moment later
			if status, _, raw := e.p.raw(e.t, http.MethodGet, path+"/"+id, nil, nil); status != http.StatusOK {
				return fmt.Sprintf("the export %s: %d %s", id, status, raw)
			}
			return ""
		})
	}
	if o.spec["responses"].(map[string]any)[fmt.Sprint(status)] == nil || status/100 != 2 {
		e.t.Fatalf("%s: %s %s with its own example: %d %s", o.id, method, path, status, raw)
	}
	var v map[string]any
	if h.Get("Content-Type") == "application/json" {
		unjson(e.t, string(raw), &v)
	}
	if at, ok := v["position"].(string); ok {
		e.wrote = at
	}
	return v
}

// refused sends what the operation cannot accept: no key where one is asked for,
// no key of the client, a body that is none, headers without end. The status must
// be one of 4xx that the operation documents by itself.
func (e *example) refused(o *operation) {
	e.t.Helper()
	if o.id == "preflight" { // a browser asks it without a key, and sends no body
		return
	}
	method, header, body := o.method, map[string]string{"Authorization": ""}, any(nil)
	switch {
	case method == "":
		method = http.MethodGet
	case o.spec["requestBody"] != nil:
		body = "{"
	case o.literals == strings.Count(o.path, "/")+1 && len(o.spec["security"].([]any)) == 0:
		header["X-Padding"] = strings.Repeat("x", 80<<10)
	}
	status, _, raw := e.p.proved(e.t, method, e.target(o), header, body)
	if o.spec["responses"].(map[string]any)[fmt.Sprint(status)] == nil || status/100 != 4 {
		e.t.Errorf("%s: %s without a key, or a body that is none: %d %s: want a documented 4xx", o.id, method, status, raw)
	}
}
