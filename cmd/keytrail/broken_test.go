package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// broken sends the operation's example in every broken form that a slip of its
// caller could give it: each parameter, member and header empty, null, cut off,
// repeated or of another form. The published schema says what is broken. Each is
// refused with a 4xx, and nothing of it is done: whatever is given counts, or is
// refused, and is never taken for absent.
func (e *example) broken(o *operation) {
	e.t.Helper()
	before := e.position()
	method := o.method
	if method == "" {
		method = http.MethodGet
	}
	path := e.target(o)
	var good any
	var schema any
	body := ""
	if spec, ok := o.spec["requestBody"].(map[string]any); ok {
		media := spec["content"].(map[string]any)["application/json"].(map[string]any)
		schema, good = media["schema"], e.fill(media["example"])
		body = encode(e.t, good)
	}
	own := map[string]string{}
	if o.id == "authorize" {
		own["Authorization"] = "Bearer " + e.stands["sk_live_8FjK..."]
		own["X-Forwarded-For"] = "203.0.113.7"
	}
	refused := func(what, path, body string, header map[string]string) {
		e.t.Helper()
		h := maps.Clone(own)
		maps.Copy(h, header)
		e.tries++
		status, answer := e.exchange(method, path, body, h)
		for again := patiently(e.t); status == http.StatusServiceUnavailable && unproved.MatchString(answer); status, answer = e.exchange(method, path, body, h) {
			again(answer)
		}
		if (o.id == "authorize" || o.id == "preflight") && status == http.StatusServiceUnavailable && strings.Contains(answer, `"code":"gateway_misconfigured"`) {
			return // what is broken is the gateway's configuration
		}
		if status/100 != 4 && !itemRefused(answer) {
			e.t.Errorf("%s: %s %s with %s: %d %s; want a 4xx\n%s", o.id, method, path, what, status, answer, body)
		}
	}

	if strings.HasPrefix(path, "/v1/") && o.id != "preflight" { // whose query is the client's
		for _, query := range []string{";", "%", "x=1", "x=1;", "=", "x"} {
			refused("a query that cannot be read", path+"?"+query, body, nil)
		}
		for _, bad := range []string{"//", "/./"} {
			refused("an unclean path", strings.Replace(path, "/", bad, 1), body, nil)
		}
	}
	for _, param := range o.parameters {
		name := param["name"].(string)
		v, ok := param["example"]
		if !ok {
			continue
		}
		value := url.QueryEscape(fmt.Sprint(e.fill(v)))
		switch param["in"] {
		case "query":
			if o.id == "metrics" {
				continue
			}
			for _, bad := range []string{"", "=", "=" + value + ";", "=" + value + "%", "=" + value + ";x=y", "=%ff", "=" + value + "&" + name + "=" + value, "=" + value + "&" + name} {
				refused("a broken "+name, path+"?"+name+bad, body, nil)
			}
			if !e.valid(param["schema"], "") {
				refused("an empty "+name, path+"?"+name+"=%20", body, nil)
			}
		case "path":
			for _, bad := range []string{"%20", "%00", "%ff", "*", "%2e%2e", url.PathEscape(fmt.Sprint(e.fill(v))) + "%20"} {
				refused("a broken "+name, strings.Replace(path, url.PathEscape(fmt.Sprint(e.fill(v))), bad, 1), body, nil)
			}
		case "header":
			if name == "Prefer" {
				continue // RFC 7240: what is not understood is ignored
			}
			refused("an empty "+name, path, body, map[string]string{name: ""})
		}
	}
	if schema == nil {
		if o.method != "" && strings.HasPrefix(path, "/v1/") {
			refused("a body where none is taken", path, "{}", nil)
		}
	} else {
		for _, bad := range []string{" ", "null", "[]", `""`, "{", body + "}", body + body, "\ufeff" + body, strings.TrimSuffix(body, "}") + `,"x-unknown":1}`} {
			if e.validText(schema, bad) {
				continue
			}
			refused("a broken body", path, bad, nil)
		}
		refused("a compressed body", path, body, map[string]string{"Content-Encoding": "gzip"})
		for _, typ := range []string{"", "text/plain", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "application/json, text/html"} {
			refused("a body as "+typ, path, body, map[string]string{"Content-Type": typ})
		}
		for what, bad := range variants(good) {
			if e.valid(schema, bad) {
				continue // documented
			}
			refused(what, path, encode(e.t, bad), nil)
		}
	}
	if after := e.position(); after != before {
		e.t.Errorf("%s: a refused request was done: the log is at %s, and was at %s", o.id, after, before)
	}
}

// itemRefused reports whether an answer that speaks of each item of its request
// refuses the first, which is the broken one.
func itemRefused(answer string) bool {
	var list struct {
		Data []struct {
			Status any
			Error  *struct{ Status int }
		}
	}
	if json.Unmarshal([]byte(answer), &list) != nil || len(list.Data) == 0 {
		return false
	}
	first := list.Data[0]
	return first.Status == "refused" || first.Error != nil && first.Error.Status/100 == 4
}

// variants yields v with one value of it broken, for every value of it.
func variants(v any) func(func(string, any) bool) {
	slips := []any{nil, "", " ", ",", " , ", "null", "\x00", "\u200b", []any{}, []any{nil}, []any{""}, []any{" , "}, map[string]any{}, map[string]any{"": nil}, true, json.Number("0"), json.Number("-1"), json.Number("1.5"), json.Number("60.0"), json.Number("1e2"), json.Number("99999999999999999999")}
	return func(yield func(string, any) bool) {
		var walk func(path string, v any, put func(any) any) bool
		walk = func(path string, v any, put func(any) any) bool {
			if path != "" {
				for _, slip := range slips {
					if !yield(fmt.Sprintf("%s = %v", path, slip), put(slip)) {
						return false
					}
				}
			}
			switch v := v.(type) {
			case map[string]any:
				for _, name := range slices.Sorted(maps.Keys(v)) {
					if !walk(path+"."+name, v[name], func(x any) any {
						c := maps.Clone(v)
						c[name] = x
						return put(c)
					}) {
						return false
					}
				}
			case []any:
				for i := range v[:min(len(v), 1)] {
					if !walk(fmt.Sprintf("%s[%d]", path, i), v[i], func(x any) any {
						c := slices.Clone(v)
						c[i] = x
						return put(c)
					}) {
						return false
					}
				}
			}
			return true
		}
		walk("", v, func(x any) any { return x })
	}
}

func encode(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (e *example) valid(schema, v any) bool {
	return e.validText(schema, encode(e.t, v))
}

func (e *example) validText(schema any, text string) bool {
	return answers.doc.validate(schema, []byte(text)) == nil
}

// unwatched sends what the document does not know.
var unwatched http.Transport

// exchange sends one request and returns the status and the answer.
func (e *example) exchange(method, path, body string, header map[string]string) (int, string) {
	e.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, e.p.url, in)
	if err != nil {
		e.t.Fatal(err)
	}
	req.URL.Opaque = path // as it is written
	req.Header.Set("Authorization", "Bearer "+e.p.root)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for name, v := range header {
		req.Header[http.CanonicalHeaderKey(name)] = []string{v}
	}
	resp, err := unwatched.RoundTrip(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// position returns where the log stands, once the view holds what the story wrote.
func (e *example) position() string {
	e.t.Helper()
	question := map[string]any{"key": "nobody_0123456789abcdef"}
	if e.wrote != "" {
		question["min_position"] = e.wrote
	}
	return fmt.Sprint(e.p.reached(e.t, question)["position"])
}
