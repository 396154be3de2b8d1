package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestSecretsSweep puts a live secret into every place of every operation of the
// OpenAPI document: each part of a path, each parameter of a query, each header,
// each member of a body and each name of one, and into what no operation has. It
// does so with a secret of a keyspace, with an operator's, and with one of another
// issuer, which has no form. None comes back in an answer, and none gets onto the
// log, into the ledger, its copies, a metric or a line of the log. What takes an
// operator's key refuses each with 422 and the code secret.
//
// It reads the document, so that a new operation or member is swept by itself.
func TestSecretsSweep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir, "--trusted-proxy", "127.0.0.1", "--log-level", "debug")
	s := &sweep{example: example{t: t, p: p, stands: map[string]string{}}}
	byID := map[string]*operation{}
	for _, o := range answers.doc.operations {
		byID[o.id] = o
	}
	for _, id := range []string{"defineKeyspace", "createKey", "defineRole"} {
		got := s.send(byID[id], nil)
		if id == "createKey" {
			data := got["data"].(map[string]any)
			s.stands["key_01JH2Q8X5T6V7W8Y9Z0ABCDEFG"] = data["id"].(string)
			s.stands["sk_live_8FjK..."] = data["key"].(string)
		}
	}
	issued := s.stands["sk_live_8FjK..."]
	status, made := p.do(t, "POST", "/v1/keyspaces/keytrail/keys", nil, map[string]any{"tenant": "operators", "name": "sweep", "scopes": []string{"keys:read"}})
	if status != http.StatusCreated {
		t.Fatal(status, made)
	}
	operators := made["data"].(map[string]any)["key"].(string)
	const legacy = "Old-gateway_secret-0042x"
	keyspace := strings.Split(s.target(byID["importKeys"]), "/")[3]
	status, got := p.do(t, "POST", "/v1/keyspaces/"+keyspace+"/keys/import", nil, map[string]any{"keys": []any{
		map[string]any{"digest": hexDigest(legacy), "tenant": "acme", "name": "old", "scopes": []string{"read"}},
	}})
	if status != http.StatusOK || got["data"].([]any)[0].(map[string]any)["status"] != "imported" {
		t.Fatal(status, got)
	}
	changes := func() int { // events that are about anything but reading the record
		n := 0
		for line := range strings.Lines(p.must(t, "audit", "export", "--kind", "events")) {
			if strings.HasPrefix(line, "{") && !strings.Contains(line, `"type":"audit.`) || !strings.HasPrefix(line, "{") && !strings.Contains(line, "audit.") {
				n++
			}
		}
		return n
	}
	var before int
	eventually(t, func() string {
		out, _, code := p.cli(t, "audit", "events", "--type", "key.imported")
		if code != 0 || !strings.Contains(out, "key.imported") {
			return "the copy does not have the imported key: " + out
		}
		return ""
	})
	before = changes()

	secrets := []string{issued, operators, legacy}
	var tried atomic.Int64
	t.Run("requests", func(t *testing.T) {
		for i, secret := range secrets {
			t.Run(fmt.Sprint("secret ", i), func(t *testing.T) {
				t.Parallel() // each waits for the process most of the time
				s := &sweep{example: example{t: t, p: p, stands: s.stands}, secret: secret}
				for _, o := range answers.doc.operations {
					s.operation(o)
				}
				for _, path := range []string{"/" + s.secret, "/v1/" + s.secret, "/v1/keys/" + s.secret + "/" + s.secret, "/v1/keyspaces/%zz" + s.secret} {
					s.try("a path without an operation", "GET", path, nil, nil, anyRefusal)
				}
				s.try("a method without an operation", "POST", "/v1/keys/"+s.secret, nil, nil, anyRefusal)
				tried.Add(int64(s.tried))
			})
		}
	})
	if tried.Load() < 1000 {
		t.Errorf("%d requests: the sweep does not see what it is for", tried.Load())
	}
	t.Logf("%d requests", tried.Load())

	// A User-Agent may be anything, and an event records it: without the secret.
	id := s.stands["key_01JH2Q8X5T6V7W8Y9Z0ABCDEFG"]
	for i, secret := range secrets {
		status, got := p.do(t, "PATCH", "/v1/keys/"+id, map[string]string{"User-Agent": "tool/1 (" + secret + ")"}, map[string]any{"name": fmt.Sprint("renamed ", i)})
		if status != http.StatusOK {
			t.Fatal(status, got)
		}
	}
	eventually(t, func() string {
		out, _, _ := p.cli(t, "--json", "audit", "events", "--type", "key.renamed")
		if n := strings.Count(out, `"user_agent":"tool/1 ([secret])"`); n != len(secrets) {
			return fmt.Sprintf("%d of %d user agents without their secret: %s", n, len(secrets), out)
		}
		return ""
	})
	if after := changes(); after != before+len(secrets) {
		t.Errorf("the sweep wrote %d events", after-before-len(secrets))
	}
	_, _, metrics := p.raw(t, "GET", "/metrics", nil, nil)
	copies := p.must(t, "audit", "export", "--kind", "events", "--format", "jsonl") + p.must(t, "audit", "export", "--kind", "uses") + string(metrics)
	for _, secret := range append(secrets, p.root) {
		if strings.Contains(copies, secret) {
			t.Errorf("a secret (%s…) is in the copy or in the metrics", secret[:6])
		}
	}
	p.stop(t)
	checkNoSecrets(t, dir, []*proc{p}, append(secrets, p.root)...)
}

// sweep is the example of the document with a secret in it.
type sweep struct {
	example
	secret string
	tried  int
}

// What a request with a secret must be answered with.
type expectation int

const (
	secretRefused expectation = iota // 422 with the code secret
	anyRefusal                       // 4xx or 5xx
	anything                         // it may succeed
)

func (s *sweep) try(where, method, path string, header map[string]string, body any, want expectation) {
	s.t.Helper()
	s.tried++
	u := s.p.url + path
	if _, err := url.Parse(u); err != nil {
		return // no client sends it
	}
	status, h, raw := s.p.raw(s.t, method, path, header, body)
	for deadline := time.Now().Add(patience); want == secretRefused && status == http.StatusServiceUnavailable && !bytes.Contains(raw, []byte(s.secret)) && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond) // it proves nothing for a moment: a real process on the other side
		status, h, raw = s.p.raw(s.t, method, path, header, body)
	}
	text := string(raw)
	for name, values := range h {
		text += "\n" + name + ": " + strings.Join(values, ", ")
	}
	var p struct {
		Code   string `json:"code"`
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	switch {
	case strings.Contains(text, s.secret):
		s.t.Errorf("%s: the answer repeats the secret: %d %s", where, status, text)
	case want == anyRefusal && status < 400:
		s.t.Errorf("%s: %d %s", where, status, text)
	case want == secretRefused:
		if json.Unmarshal(raw, &p) != nil || status != http.StatusUnprocessableEntity || p.Code != "secret" || len(p.Errors) == 0 || p.Errors[0].Code != "secret" {
			s.t.Errorf("%s: want 422 secret: %d %s", where, status, text)
		}
	}
}

// operation puts the secret into every place of one operation.
func (s *sweep) operation(o *operation) {
	method := o.method
	if method == "" {
		method = http.MethodGet
	}
	guarded := o.spec["security"] == nil || len(o.spec["security"].([]any)) > 0
	want := anyRefusal
	if guarded {
		want = secretRefused
	}
	var body any
	spec, _ := o.spec["requestBody"].(map[string]any)
	if spec != nil {
		body = spec["content"].(map[string]any)["application/json"].(map[string]any)["example"]
	}
	text := func(v any) any {
		if v == nil {
			return nil
		}
		b, err := json.Marshal(s.fill(v))
		if err != nil {
			s.t.Fatal(err)
		}
		return string(b)
	}
	path := o.path
	for _, param := range o.parameters {
		if param["in"] == "path" {
			v := param["example"]
			if v == nil {
				v = "x"
			}
			path = strings.Replace(path, "{"+param["name"].(string)+"}", url.PathEscape(fmt.Sprint(s.fill(v))), 1)
		}
	}
	for _, param := range o.parameters {
		name := param["name"].(string)
		where := fmt.Sprintf("%s: %s in %s", o.id, name, param["in"])
		switch param["in"] {
		case "path":
			at := strings.Split(path, "/")
			at[slices.Index(strings.Split(o.path, "/"), "{"+name+"}")] = s.secret
			s.try(where, method, strings.Join(at, "/"), nil, text(body), want)
			s.try(where+", without a key", method, strings.Join(at, "/"), map[string]string{"Authorization": ""}, text(body), anyRefusal)
		case "query":
			s.try(where, method, path+"?"+url.Values{name: {s.secret}}.Encode(), nil, text(body), want)
			s.try(where+", twice", method, path+"?"+url.Values{name: {"x", s.secret}}.Encode(), nil, text(body), anyRefusal)
		case "header":
			if guarded {
				s.try(where, method, path, map[string]string{name: s.secret}, text(body), want)
			}
		}
	}
	if strings.HasPrefix(o.path, "/v1/") {
		answer := anyRefusal
		if o.id == "preflight" { // whose query is the client's
			answer = anything
		}
		s.try(o.id+": an unknown parameter", method, path+"?"+url.QueryEscape(s.secret)+"=1", nil, text(body), answer)
	}
	if guarded && (method == http.MethodGet || o.id == "deleteRole") {
		s.try(o.id+": a body that is not taken", method, path, nil, `"`+s.secret+`"`, anyRefusal)
	}
	if method == http.MethodGet { // what only reads may succeed
		for _, name := range []string{"User-Agent", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "X-Keytrail-Scope", "X-Keytrail-Resource", "X-Request-Id", "Referer", "Cookie", "Accept", "X-" + s.secret} {
			s.try(o.id+": "+name, method, path, map[string]string{name: s.secret}, nil, anything)
		}
	}
	if spec == nil {
		return
	}
	s.try(o.id+": text behind the body", method, path, nil, text(body).(string)+s.secret, anyRefusal)
	s.try(o.id+": a content type", method, path, map[string]string{"Content-Type": "text/" + s.secret}, text(body), anyRefusal)
	schema := spec["content"].(map[string]any)["application/json"].(map[string]any)["schema"]
	for _, at := range s.places(schema, nil, 0) {
		where := fmt.Sprintf("%s: body %v", o.id, at)
		want := want
		switch last := at[len(at)-1]; {
		case !guarded && last == "key": // where the secret belongs
			continue
		case o.id == "verifyBatch":
			want = anything // each item has an answer of its own
		case o.id == "verify" && slices.Contains([]any{"keyspace", "scope", "kind", "id"}, last):
			want = secretRefused // what would get into the ledger
		}
		b, err := json.Marshal(put(s.fill(body), at, s.secret))
		if err != nil {
			s.t.Fatal(err)
		}
		s.try(where, method, path, nil, string(b), want)
	}
}

// inName stands at the end of a place: the secret is the name of a member there.
const inName = "the name of a member"

// places returns every place in values of the schema where text may be put: each
// member that has no members, whatever its type, and each name.
func (s *sweep) places(schema any, at []any, depth int) (out [][]any) {
	here := func(step ...any) []any { return append(slices.Clone(at), step...) }
	m := answers.doc.resolve(schema)
	members := map[string]any{}
	object, list := false, any(nil)
	var collect func(m map[string]any)
	collect = func(m map[string]any) {
		for _, of := range []string{"allOf", "anyOf", "oneOf"} {
			parts, _ := m[of].([]any)
			for _, part := range parts {
				collect(answers.doc.resolve(part))
			}
		}
		if props, ok := m["properties"].(map[string]any); ok {
			object = true
			maps.Copy(members, props)
		}
		if more, ok := m["additionalProperties"].(map[string]any); ok {
			object = true
			members["a-name"] = more
		}
		if m["type"] == "object" {
			object = true
		}
		if items, ok := m["items"]; ok {
			list = items
		}
	}
	collect(m)
	if depth > 10 {
		return nil
	}
	if object {
		for _, name := range slices.Sorted(maps.Keys(members)) {
			out = append(out, s.places(members[name], here(name), depth+1)...)
		}
		out = append(out, here(inName))
	}
	if list != nil {
		out = append(out, s.places(list, here(0), depth+1)...)
	}
	if len(at) > 0 {
		out = append(out, at) // text instead of what belongs there
	}
	return out
}

// put returns v with text at the place; what is not there on the way is made.
func put(v any, at []any, text string) any {
	if len(at) == 0 {
		return text
	}
	switch step := at[0].(type) {
	case int:
		list, _ := v.([]any)
		list = slices.Clone(list)
		if len(list) == 0 {
			list = []any{nil}
		}
		list[0] = put(list[0], at[1:], text)
		return list
	default:
		object, _ := v.(map[string]any)
		if object = maps.Clone(object); object == nil {
			object = map[string]any{}
		}
		if step == inName {
			object[text] = "x"
			return object
		}
		object[step.(string)] = put(object[step.(string)], at[1:], text)
		return object
	}
}
