package keyspace_test

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// The envelopes of the APIs that Keytrail was written after.
const (
	nested  = `{"error":{"code":"{code}","message":"{message}","request_id":"{request_id}"}}`
	issues  = `{"code":"{code}","reason":"{message}","field":"{field}","field_issues":[{"code":"{issue.code}","reason":"{issue.message}","path":"{issue.path}"}]}`
	withMet = `{"error":{"code":"{code}","message":"{message}"},"meta":{"request_id":"{request_id}"}}`
)

func TestEnvelope(t *testing.T) {
	denied := keyspace.Failure{Reason: "scope_missing", Status: 403, Title: "Forbidden", Code: "insufficient_permissions", Message: `Want scope "write"`, RequestID: "req_aB12cD", Scope: "write", Resource: "project/p1"}
	bare := keyspace.Failure{Reason: "key_missing", Status: 401, Title: "Unauthorized", Code: "authentication_required", Message: "Invalid or missing API key"}
	limited := keyspace.Failure{Reason: "rate_limited", Status: 429, Title: "Too Many Requests", Code: "rate_limited", Message: "Slow down", RetryAfter: 7}
	oneField := keyspace.Failure{Reason: "invalid", Status: 400, Title: "Bad Request", Code: "invalid_email", Message: "Invalid email address", Fields: input.FieldErrors{{Field: "email", Code: "invalid_email", Message: "malformed address"}}}
	twoFields := oneField
	twoFields.Fields = input.FieldErrors{{Field: "resources[0].id", Code: "invalid", Message: "want an id"}, {Field: "name", Code: "required"}}
	strange := keyspace.Failure{Code: "a\"\\\n\x00\x7f", Message: "Schlüssel 日本 🔑 \u2028 \xff{code}", RequestID: "</script>&"}

	for name, c := range map[string]struct {
		template string
		f        *keyspace.Failure
		want     string
	}{
		"nested":                    {nested, &denied, `{"error":{"code":"insufficient_permissions","message":"Want scope \"write\"","request_id":"req_aB12cD"}}`},
		"nested, no request id":     {nested, &bare, `{"error":{"code":"authentication_required","message":"Invalid or missing API key"}}`},
		"nested, nothing":           {nested, &keyspace.Failure{}, `{}`},
		"issues, none":              {issues, &denied, `{"code":"insufficient_permissions","reason":"Want scope \"write\""}`},
		"issues, one":               {issues, &oneField, `{"code":"invalid_email","reason":"Invalid email address","field":"email","field_issues":[{"code":"invalid_email","reason":"malformed address","path":"email"}]}`},
		"issues, two":               {issues, &twoFields, `{"code":"invalid_email","reason":"Invalid email address","field_issues":[{"code":"invalid","reason":"want an id","path":"resources.0.id"},{"code":"required","path":"name"}]}`},
		"meta":                      {withMet, &denied, `{"error":{"code":"insufficient_permissions","message":"Want scope \"write\""},"meta":{"request_id":"req_aB12cD"}}`},
		"meta, no request id":       {withMet, &bare, `{"error":{"code":"authentication_required","message":"Invalid or missing API key"}}`},
		"members keep their order":  {`{"z":"{code}","a":"{code}","m":1}`, &bare, `{"z":"authentication_required","a":"authentication_required","m":1}`},
		"literals stay":             {`{ "n": 1.50e+3, "big": 123456789012345678901234567890, "t": true, "f": false, "x": null, "s": "", "l": [1, "a"], "u": "\u00e9\/" }`, &bare, `{"n":1.50e+3,"big":123456789012345678901234567890,"t":true,"f":false,"x":null,"s":"","l":[1,"a"],"u":"\u00e9/"}`},
		"numbers":                   {`{"status":"{status}","retry":"{retry_after}","text":"{status}: {retry_after}"}`, &limited, `{"status":429,"retry":7,"text":"429: 7"}`},
		"numbers that are not said": {`{"status":"{status}","retry":"{retry_after}","text":"in {retry_after} s","two":"{retry_after}{retry_after}"}`, &bare, `{"status":401,"text":"in  s"}`},
		"the rest":                  {`{"t":"{title}","r":"{reason}","s":"{scope}","o":"{resource}","both":"{scope} of {resource}"}`, &denied, `{"t":"Forbidden","r":"scope_missing","s":"write","o":"project/p1","both":"write of project/p1"}`},
		"braces":                    {`{"a":"{{code}","b":"{{{code}","c":"}","d":"{{","e":"{{{{}}"}`, &bare, `{"a":"{code}","b":"{authentication_required","c":"}","d":"{","e":"{{}}"}`},
		"what is filled in is text": {`{"a":"{message}"}`, &strange, `{"a":"Schl\u00fcssel \u65e5\u672c \ud83d\udd11 \u2028 \ufffd{code}"}`},
		"escapes":                   {`{"a":"{code}","b":"{request_id}"}`, &strange, `{"a":"a\"\\\u000a\u0000\u007f","b":"\u003c/script\u003e\u0026"}`},
		"names":                     {`{"\u00e9\n{code}":"{code}","":1}`, &bare, `{"\u00e9\u000a{code}":"authentication_required","":1}`},
		"empty values go":           {`{"a":{},"b":[],"c":[{"d":"{scope}"},[],"{scope}"],"e":1}`, &bare, `{"e":1}`},
		"some elements go":          {`{"a":["{scope}","{code}","{scope}",2]}`, &bare, `{"a":["authentication_required",2]}`},
		"an issue as text":          {`{"a":["{issue.path}: {issue.message}"]}`, &twoFields, `{"a":["resources.0.id: want an id","name: "]}`},
		"issues deep":               {`{"a":{"b":[[{"c":["x","{issue.code}"],"k":"{code}"}]]}}`, &twoFields, `{"a":{"b":[[{"c":["x","invalid"],"k":"invalid_email"},{"c":["x","required"],"k":"invalid_email"}]]}}`},
		"issue lists in a list":     {`{"a":[1,["{issue.code}"]]}`, &twoFields, `{"a":[1,["invalid","required"]]}`},
	} {
		e, err := keyspace.CompileEnvelope(jsontext.Value(c.template))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for range 2 { // it can be filled in again
			if got := string(e.Append([]byte("x"), c.f)); got != "x"+c.want {
				t.Errorf("%s:\n%s\nwant\n%s", name, got[1:], c.want)
			}
		}
	}
}

func TestEnvelopeRefuses(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 9) + `1` + strings.Repeat(`}`, 9)
	for template, says := range map[string]string{
		``:                                      "want an object",
		`null`:                                  "want an object",
		`[]`:                                    "want an object",
		`"{code}"`:                              "want an object",
		`{"a":"{secret}"}`:                      `"{secret}": want a placeholder of code, message`,
		`{"a":"{Code}"}`:                        "want a placeholder",
		`{"a":"{code"}`:                         "want a placeholder",
		`{"a":"{"}`:                             "{{ is a brace",
		`{"a":"x {} y"}`:                        `"x {} y"`,
		`{"a":[{"b":{"c":"{issue.secret}"}}]}`:  "want a placeholder",
		`{"a":"{issue.code}"}`:                  "inside a list of one element only",
		`{"a":["{issue.code}","{issue.path}"]}`: "inside a list of one element only",
		`{"a":{"b":"{issue.code}"},"c":[1]}`:    "inside a list of one element only",
		`{"a":[{"b":"{issue.code}","c":["{issue.path}"]}]}`:           "within another",
		`{"a":[{"b":"{issue.code}","c":{"d":[["{issue.path}"],1]}}]}`: "within another",
		`{"a":1,"a":2}`:      "duplicate",
		`{"é":1,"\u00e9":2}`: "duplicate",
		`{"a":1`:             "EOF",
		`{"a":1]`:            "invalid character",
		`{"a":01}`:           "invalid character",
		"{\"a\":\"\xff\"}":   "UTF-8",
		`{"a":"\ud800"}`:     "surrogate",
		`{"a":1} {}`:         "nothing after the object",
		`{"a":1} x`:          "nothing after the object",
		deep:                 "want at most 8 levels",
		`{"a":"` + strings.Repeat("x", 8192) + `"}`: "want at most 8192 bytes",
	} {
		if _, err := keyspace.CompileEnvelope(jsontext.Value(template)); err == nil || !strings.Contains(err.Error(), says) || len(err.Error()) > 400 {
			t.Errorf("%.60s: %v, want %q", template, err, says)
		}
	}
	if _, err := keyspace.CompileEnvelope(jsontext.Value(deep[len(`{"a":`) : len(deep)-1])); err != nil {
		t.Errorf("8 levels: %v", err)
	}
}

// TestEnvelopeOfManyIssues: an answer does not grow without bound with what was
// wrong with the question.
func TestEnvelopeOfManyIssues(t *testing.T) {
	e := must(keyspace.CompileEnvelope(jsontext.Value(`{"a":["{issue.path}"],"b":[["{issue.code}"]]}`)))
	var f keyspace.Failure
	for i := range 1002 {
		f.Fields.Add(fmt.Sprint("f", i), "c", "m")
	}
	var got struct {
		A []string   `json:"a"`
		B [][]string `json:"b"`
	}
	if err := stdjson.Unmarshal(e.Append(nil, &f), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.A) != 1000 || got.A[999] != "f999" || len(got.B) != 1 || len(got.B[0]) != 1000 {
		t.Errorf("%d of them, %d lists", len(got.A), len(got.B))
	}
}

func TestAnswer(t *testing.T) {
	d := keyspace.Definition{Errors: keyspace.ErrorRules{Answers: []keyspace.ErrorAnswer{
		{Reasons: []string{"key_missing", "key_malformed"}, Status: 401, Code: "authentication_required", Message: "Invalid or missing API key"},
		{Reasons: []string{"scope_missing"}, Message: "Want {scope} of {resource}{{}"},
		{Reasons: []string{"rate_limited"}, Status: 503, Message: "Again in {retry_after} s"},
		{Reasons: []string{"conflict"}},
	}}}
	for reason, want := range map[string]string{
		"key_missing":   "401 authentication_required Invalid or missing API key",
		"key_malformed": "401 authentication_required Invalid or missing API key",
		"scope_missing": "418 c Want {code} of project/p{}",
		"rate_limited":  "503 c Again in 9 s",
		"conflict":      "418 c m",
		"key_unknown":   "418 c m",
		"":              "418 c m",
	} {
		f := keyspace.Failure{Reason: reason, Status: 418, Code: "c", Message: "m", Scope: "{code}", Resource: "project/p", RetryAfter: 9, Title: "t"}
		keyspace.Compile(d, nil).Answer(&f)
		if got := fmt.Sprint(f.Status, " ", f.Code, " ", f.Message); got != want || f.Title != "t" || f.Reason != reason {
			t.Errorf("%s: %s, want %s", reason, got, want)
		}
	}
}

func TestDottedPath(t *testing.T) {
	for in, want := range map[string]string{"": "", "name": "name", "resources[0].id": "resources.0.id", "a[1][2].b": "a.1.2.b", "x.y": "x.y"} {
		if got := keyspace.DottedPath(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

// tree is a JSON value with its members in order; one of them is set.
type tree struct {
	names []string // of an object
	nodes []*tree
	kind  byte   // { [ " or 0 for what text is as it stands
	text  string // of a string, or the literal
}

// readTree reads JSON by the standard library's tokens.
func readTree(b []byte) (*tree, error) {
	dec := stdjson.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var read func() (*tree, error)
	read = func() (*tree, error) {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		switch x := tok.(type) {
		case string:
			return &tree{kind: '"', text: x}, nil
		case stdjson.Delim:
			n := &tree{kind: byte(x)}
			for dec.More() {
				if x == '{' {
					name, err := dec.Token()
					if err != nil {
						return nil, err
					}
					n.names = append(n.names, name.(string))
				}
				child, err := read()
				if err != nil {
					return nil, err
				}
				n.nodes = append(n.nodes, child)
			}
			_, err := dec.Token()
			return n, err
		case nil:
			return &tree{text: "null"}, nil
		default:
			return &tree{text: fmt.Sprint(x)}, nil
		}
	}
	n, err := read()
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("more after the value: %v", err)
	}
	return n, nil
}

func (n *tree) String() string {
	switch n.kind {
	case '"':
		return strconv.Quote(n.text)
	case 0:
		return n.text
	}
	var out []string
	for i, c := range n.nodes {
		s := c.String()
		if n.kind == '{' {
			s = strconv.Quote(n.names[i]) + ":" + s
		}
		out = append(out, s)
	}
	return string(n.kind) + strings.Join(out, ",") + string(n.kind+2)
}

var (
	hole      = regexp.MustCompile(`\{\{|\{[a-z_.]+\}`)
	onlyHoles = regexp.MustCompile(`^(\{[a-z_.]+\})+$`)
)

// ofIssue reports whether the value speaks of one issue, and is no list that
// stands for all of them.
func (n *tree) ofIssue() bool {
	if n.kind == '"' {
		return strings.Contains(strings.ReplaceAll(n.text, "{{", ""), "{issue.")
	}
	some := false
	for _, c := range n.nodes {
		some = some || c.ofIssue()
	}
	return some && !(n.kind == '[' && len(n.nodes) == 1)
}

// fill is Envelope.Append as its comment says it, over trees; nil is nothing.
func (n *tree) fill(f *keyspace.Failure, issue *input.FieldError) *tree {
	switch n.kind {
	case 0:
		return n
	case '"':
		number := map[string]int64{"{status}": int64(f.Status), "{retry_after}": f.RetryAfter}
		if v, ok := number[n.text]; ok {
			if v <= 0 {
				return nil
			}
			return &tree{text: strconv.FormatInt(v, 10)}
		}
		field, after := "", ""
		if len(f.Fields) == 1 {
			field = keyspace.DottedPath(f.Fields[0].Field)
		}
		if f.RetryAfter > 0 {
			after = strconv.FormatInt(f.RetryAfter, 10)
		}
		values := map[string]string{"{{": "{", "{code}": f.Code, "{message}": f.Message, "{status}": strconv.Itoa(f.Status), "{title}": f.Title, "{reason}": f.Reason,
			"{request_id}": f.RequestID, "{scope}": f.Scope, "{resource}": f.Resource, "{retry_after}": after, "{field}": field}
		if issue != nil {
			values["{issue.code}"], values["{issue.message}"], values["{issue.path}"] = issue.Code, issue.Message, keyspace.DottedPath(issue.Field)
		}
		s := hole.ReplaceAllStringFunc(n.text, func(h string) string { return values[h] })
		if s == "" && onlyHoles.MatchString(n.text) {
			return nil
		}
		return &tree{kind: '"', text: string([]rune(s))}
	}
	out := &tree{kind: n.kind}
	for i, c := range n.nodes {
		with := []*input.FieldError{issue}
		if n.kind == '[' && len(n.nodes) == 1 && c.ofIssue() {
			with = nil
			for i := range f.Fields {
				with = append(with, &f.Fields[i])
			}
		}
		for _, issue := range with {
			if v := c.fill(f, issue); v != nil {
				out.nodes = append(out.nodes, v)
				if n.kind == '{' {
					out.names = append(out.names, n.names[i])
				}
			}
		}
	}
	if len(out.nodes) == 0 {
		return nil
	}
	return out
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

// checkEnvelope fills a template in and compares with the naive reading.
func checkEnvelope(t fataler, template []byte, f *keyspace.Failure) {
	t.Helper()
	e, err := keyspace.CompileEnvelope(template)
	if err != nil {
		if len(err.Error()) > 600 {
			t.Fatalf("an error of %d characters", len(err.Error()))
		}
		return
	}
	got := e.Append(nil, f)
	for _, c := range got {
		if c < ' ' || c > '~' {
			t.Fatalf("%q is not printable ASCII", got)
		}
	}
	if !stdjson.Valid(got) {
		t.Fatalf("%s is not JSON", got)
	}
	source, err := readTree(template)
	if err != nil {
		t.Fatalf("the template %s compiles, and is no JSON: %v", template, err)
	}
	want := source.fill(f, nil)
	if want == nil {
		want = &tree{kind: '{'}
	}
	read, err := readTree(got)
	if err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	if read.String() != want.String() {
		t.Fatalf("%s of %+v says\n%s\nwant\n%s", template, f, read, want)
	}
}

func genTemplate(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		kind := rapid.IntRange(0, 7).Draw(t, "kind")
		if depth == 0 {
			kind %= 4
		}
		switch kind {
		case 0:
			return rapid.SampledFrom([]string{"null", "true", "false", "0", "-0", "1.50e+3", "123456789012345678901234567890"}).Draw(t, "literal")
		case 1, 2, 3:
			parts := rapid.SliceOfN(rapid.SampledFrom([]string{"{code}", "{message}", "{status}", "{title}", "{reason}", "{request_id}", "{scope}", "{resource}", "{retry_after}", "{field}",
				"{issue.code}", "{issue.message}", "{issue.path}", "{{", "}", "x", " ", "é", `\u00e9`, `\n`, `\"`}), 0, 3).Draw(t, "text")
			return `"` + strings.Join(parts, "") + `"`
		case 4, 5:
			var items []string
			for range rapid.IntRange(0, 2).Draw(t, "elements") {
				items = append(items, genTemplate(depth-1).Draw(t, "element"))
			}
			return "[" + strings.Join(items, ", ") + "]"
		default:
			return genObject(depth-1).Draw(t, "object")
		}
	})
}

func genObject(depth int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		var items []string
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"z", "a", "m", "é", `\n`, ""}), 0, 4, rapid.ID[string]).Draw(t, "names") {
			items = append(items, `"`+name+`" : `+genTemplate(depth).Draw(t, "member"))
		}
		return "{" + strings.Join(items, ",") + "}"
	})
}

func TestEnvelopeAgainstNaive(t *testing.T) {
	compiled := 0
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.OneOf(rapid.Just(""), rapid.String())
		f := keyspace.Failure{Reason: text.Draw(r, "reason"), Status: rapid.SampledFrom([]int{0, 401, 599}).Draw(r, "status"), Title: text.Draw(r, "title"), Code: text.Draw(r, "code"),
			Message: text.Draw(r, "message"), RequestID: text.Draw(r, "request id"), Scope: text.Draw(r, "scope"), Resource: text.Draw(r, "resource"), RetryAfter: rapid.Int64Range(0, 3).Draw(r, "retry after")}
		for range rapid.IntRange(0, 3).Draw(r, "fields") {
			f.Fields = append(f.Fields, input.FieldError{Field: rapid.SampledFrom([]string{"", "name", "resources[0].id"}).Draw(r, "field"), Code: text.Draw(r, "field code"), Message: text.Draw(r, "field message")})
		}
		template := genObject(3).Draw(r, "template")
		if _, err := keyspace.CompileEnvelope(jsontext.Value(template)); err == nil {
			compiled++
		}
		checkEnvelope(r, []byte(template), &f)
	})
	if compiled < 10 {
		t.Errorf("only %d templates compile", compiled)
	}
}

// FuzzEnvelope: whatever compiles, and whatever it is filled in with, the answer
// is JSON in printable ASCII and says what the naive reading says.
func FuzzEnvelope(f *testing.F) {
	for _, template := range []string{nested, issues, withMet, `{}`, `{"a":["x","{issue.code}"]}`, `{"a":"{{{status}","b":"{status}","c":[[],{}]}`, "{\"\xff\":1}", `{"a":1,"\u0061":2}`, `{"a":[["{issue.path}"]]}`} {
		f.Add([]byte(template), "c", "m", "r", "a[0].b", 400, int64(7), 2)
		f.Add([]byte(template), "", "\xc3", "\xa9\x00", "", 0, int64(-1), 1)
	}
	f.Fuzz(func(t *testing.T, template []byte, code, message, request, field string, status int, retry int64, fields int) {
		x := keyspace.Failure{Reason: request, Status: status, Title: code, Code: code, Message: message, RequestID: request, Scope: field, Resource: field, RetryAfter: retry}
		for range uint(fields) % 4 {
			x.Fields = append(x.Fields, input.FieldError{Field: field, Code: code, Message: message})
		}
		checkEnvelope(t, template, &x)
	})
}

func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

// On the log an envelope stands in one form: compact, with strings in their
// shortest form, numbers and the order of members as given. What the endpoint took
// and what the log gives back answer the same.
func TestEnvelopeOnTheLog(t *testing.T) {
	failure := keyspace.Failure{Code: "c", Message: "m é", RequestID: "r", Status: 400, Fields: input.FieldErrors{{Field: "a[0]", Code: "x", Message: "y"}}}
	event := func(envelope string) events.Event {
		d := minimal()
		d.Errors.Envelope = jsontext.Value(envelope)
		return logtest.Event(events.KeyspaceAggregate("shop"), &events.KeyspaceDefined{Definition: d})
	}
	stored := func(e *events.Event) string {
		return string(e.Data.(*events.KeyspaceDefined).Definition.Errors.Envelope)
	}
	answer := func(envelope string) string {
		return string(must(keyspace.CompileEnvelope(jsontext.Value(envelope))).Append(nil, &failure))
	}
	deep := strings.Repeat(`{"a":[`, 4) + `1` + strings.Repeat(`]}`, 4)
	for given, want := range map[string]string{
		" {\n\t\"a\" : [ 1 , 2 ]\r\n} ":            `{"a":[1,2]}`,
		`{"\u00e9":"\u00e9"}`:                      `{"é":"é"}`,
		`{"é":"é"}`:                                `{"é":"é"}`,
		`{"a":"\/\u0041\u000a\u2028\ud83d\ude00"}`: "{\"a\":\"/A\\n\u2028😀\"}",
		`{"a":"<&>"}`:                              `{"a":"<&>"}`,
		`{"a":"\u007b{code}"}`:                     `{"a":"{{code}"}`,
		`{"z":1,"a":2}`:                            `{"z":1,"a":2}`,
		`{"n":[123456789012345678901234567890,1e400,-0,0.10,1E5,9007199254740993]}`: `{"n":[123456789012345678901234567890,1e400,-0,0.10,1E5,9007199254740993]}`,
		`{}`:   `{}`,
		deep:   deep,
		nested: nested, issues: issues, withMet: withMet,
	} {
		e := event(given)
		m, err := events.Encode(&e)
		if err != nil {
			t.Errorf("%q: %v", given, err)
			continue
		}
		read, err := events.DecodeStrict(&m)
		if err != nil {
			t.Errorf("%q: what was encoded is not canonical: %v", given, err)
			continue
		}
		if stored(&read) != want {
			t.Errorf("%q is stored as %q, want %q", given, stored(&read), want)
		}
		if a, b := answer(given), answer(stored(&read)); a != b {
			t.Errorf("%q answers %s, from the log %s", given, a, b)
		}
		// The same body with the envelope as given is not the only form.
		as := m
		as.Data = bytes.Replace(m.Data, []byte(want), []byte(given), 1)
		loose, err := events.Decode(&as)
		if err != nil || answer(stored(&loose)) != answer(want) {
			t.Errorf("%q: Decode: %v", given, err)
		}
		if _, err := events.DecodeStrict(&as); (err == nil) != (given == want) {
			t.Errorf("%q as it stands: DecodeStrict says %v", given, err)
		}
	}
	for _, bad := range []string{`{"a":1,"a":2}`, `{"é":1,"\u00e9":2}`, `{"a":{"b":1,"b":1}}`, `{"a":1}{}`, `{`, "{\"a\":\"\xff\"}", `{"a":"\udfff"}`, ``, `[]`} {
		e := event(bad)
		if err := e.CanAppend(); err == nil || !strings.Contains(err.Error(), "errors.envelope: ") {
			t.Errorf("%q may be appended, or is not clearly refused: %v", bad, err)
		}
		if m, err := events.Encode(&e); err == nil {
			t.Errorf("%q is encoded: %s", bad, m.Data)
		}
		good := event(`{"a":"here"}`)
		m := must(events.Encode(&good))
		m.Data = bytes.Replace(m.Data, []byte(`{"a":"here"}`), []byte(bad), 1)
		if got, err := events.Decode(&m); err == nil {
			t.Errorf("%q is read, as %q", bad, stored(&got))
		}
	}
}
