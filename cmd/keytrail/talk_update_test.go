package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
)

// update writes the answer into the script in place of the one that stands
// there. Lines and members that still hold keep their placeholders; what looks as
// if it were different every time becomes one.
func (t *talk) update(ts *testscript.TestScript, name string, e *conversation, got *reply) error {
	path := filepath.Join(scripts, ts.Name()+".txtar")
	if t.archive == nil {
		a, err := txtar.ParseFile(path)
		if err != nil {
			return err
		}
		t.archive = a
	}
	var b strings.Builder
	i := slices.IndexFunc(t.archive.Files, func(f txtar.File) bool { return f.Name == name })
	if e.command != nil {
		line, _, _ := strings.Cut(string(t.archive.Files[i].Data), "\n")
		b.WriteString(line + "\n")
		if got.status != "exit 0" {
			b.WriteString(got.status + "\n")
		}
	} else {
		request, _, _ := strings.Cut(string(t.archive.Files[i].Data), "HTTP/")
		b.WriteString(request + got.status + "\n")
		for _, h := range e.want {
			value := strings.Join(got.header.Values(h[0]), ", ")
			switch _, absent := strings.CutPrefix(h[0], "!"); {
			case absent:
				b.WriteString(h[0] + "\n")
			case t.match(h[1], value, map[string]string{}):
				b.WriteString(h[0] + ": " + h[1] + "\n")
			case value != "":
				b.WriteString(h[0] + ": " + t.generalize(value) + "\n")
			}
		}
		b.WriteString("\n")
	}
	want, err := layout(e.answer)
	if err != nil {
		return err
	}
	have, err := layout(got.body)
	if err != nil {
		return err
	}
	kept := regexp.MustCompile(`"\w+": "[^"]*<[^"]*"`).FindAllString(e.answer, -1)
	for _, line := range have {
		out := t.generalize(line)
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		for _, m := range kept {
			if bare := strings.TrimSuffix(line, ","); t.match(indent+m, bare, map[string]string{}) {
				out = indent + m + line[len(bare):]
			}
		}
		for k, w := range want {
			if t.match(w, line, map[string]string{}) {
				out, want = w, want[k+1:]
				break
			}
		}
		b.WriteString(out + "\n")
	}
	b.WriteString("\n")
	t.archive.Files[i].Data = []byte(b.String())
	if err := os.WriteFile(path, txtar.Format(t.archive), 0o644); err != nil {
		return err
	}
	again, err := readExchange(b.String())
	if err != nil {
		return err
	}
	return t.compare(again, got)
}

var changing = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(kinds["time"]), "<time>"},
	{regexp.MustCompile(kinds["id"]), "<id>"},
	{regexp.MustCompile(kinds["role"]), "<role>"},
	{regexp.MustCompile(`^\d+  <time>`), "<number>  <time>"}, // the trail
	{regexp.MustCompile(`("position": ")[^"]+`), "${1}<any>"},
	{regexp.MustCompile(`\b[a-z0-9-]+/\d{10,}/\d+\b`), "<any>"},
}

var hint = regexp.MustCompile(`(?:"hint": "|^hint  )[^"]*([^"]{4})(?:"|$)`)

// generalize puts placeholders into a line of an answer.
func (t *talk) generalize(line string) string {
	for name, value := range t.vars {
		if len(value) > 8 {
			line = strings.ReplaceAll(line, value, "{"+name+"}")
		}
	}
	if m := hint.FindStringSubmatchIndex(line); m != nil {
		with := "<any>" // of the key that this answer makes
		for name, value := range t.vars {
			if strings.HasPrefix(value, line[m[2]:m[3]]) {
				with = "{" + name + ":4}"
			}
		}
		line = line[:m[2]] + with + line[m[3]:]
	}
	for _, c := range changing {
		line = c.re.ReplaceAllString(line, c.with)
	}
	return line
}

// TestExchangeSeesDifferences: what differs from a script is told.
func TestExchangeSeesDifferences(t *testing.T) {
	const script = `GET /v1/keys/{key}
Authorization: Bearer {root}

HTTP/1.1 200 OK
Content-Type: application/json
Retry-After: <number>
X-Request-Id: <any:request>
!WWW-Authenticate

{"data": {"until": "<days*30>", "request": "<any:request>", "form": "{unknown}", "id": "{key}", "rev": <number>, "key": "k_<hex*4:secret>", "scopes": ["read", "{secret:2}"],
  "text": "a \"quoted\" {brace}, [b]", "empty": {}, "none": []}}
`
	until := func(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.RFC3339) }
	body := `{"data":{"until":"` + until(30) + `","request":"req_1","form":"{unknown}","id":"key_1","rev":7,"key":"k_12ab","scopes":["read","zz"],"text":"a \"quoted\" {brace}, [b]","empty":{},"none":[]}}`
	good := func() *reply {
		return &reply{"HTTP/1.1 200 OK", http.Header{"Content-Type": {"application/json"}, "Retry-After": {"3"}, "X-Request-Id": {"req_1"}}, body}
	}
	try := func(change func(*reply)) error {
		e, err := readExchange(script)
		if err != nil {
			t.Fatal(err)
		}
		r := good()
		change(r)
		talk := &talk{vars: map[string]string{"key": "key_1", "secret": "zzzz", "brace": "{brace}"}}
		err = talk.compare(e, r)
		if err == nil && talk.vars["secret"] != "12ab" {
			t.Errorf("captured %v", talk.vars)
		}
		return err
	}
	if err := try(func(*reply) {}); err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) func(*reply) {
		return func(r *reply) {
			if !strings.Contains(r.body, old) {
				t.Fatalf("the body has no %s", old)
			}
			r.body = strings.Replace(r.body, old, new, 1)
		}
	}
	for name, change := range map[string]func(*reply){
		"status":           func(r *reply) { r.status = "HTTP/1.1 201 Created" },
		"header":           func(r *reply) { r.header.Set("Content-Type", "text/plain") },
		"header form":      func(r *reply) { r.header.Set("Retry-After", "3.5") },
		"header missing":   func(r *reply) { r.header.Del("Retry-After") },
		"header twice":     func(r *reply) { r.header.Add("Retry-After", "4") },
		"header not there": func(r *reply) { r.header.Set("WWW-Authenticate", "") },
		"value":            replace("key_1", "key_2"),
		"kept otherwise":   replace("req_1", "req_2"),
		"days":             replace(until(30), until(29)),
		"no time":          replace(until(30), "in 30 days"),
		"not kept":         replace("{unknown}", "known"),
		"number as text":   replace("7", `"7"`),
		"too long":         replace("12ab", "12abc"),
		"alphabet":         replace("12ab", "12ag"),
		"order of members": replace(`"id":"key_1","rev":7`, `"rev":7,"id":"key_1"`),
		"order of a list":  replace(`"read","zz"`, `"zz","read"`),
		"one more member":  replace(`"rev":7`, `"rev":7,"more":1`),
		"one less member":  replace(`"rev":7,`, ""),
		"escape":           replace(`\"`, `\u0022`),
		"space in a text":  replace("a ", "a"),
		"null for none":    replace("[]}", "null}"),
		"no body":          func(r *reply) { r.body = "" },
		"two values":       func(r *reply) { r.body += r.body },
	} {
		if err := try(change); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}
