package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
)

func hexDigest(secret string) string {
	d := events.NewSecret(secret).Digest()
	return hex.EncodeToString(d[:])
}

// scribe is a definition to take hints by.
var scribe = keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_live_", Length: 28}}}

func testHint(s events.Secret) string { return scribe.Hint(s.Reveal()) }

// readLines reads all lines as text: "N body" or "N! field:code...".
func readLines(format, text string, plaintext bool) (out []string, err error) {
	lines, err := newImportLines(format, strings.NewReader(text), lineMaker{plaintext: plaintext, hint: testHint})
	for err == nil {
		var l importLine
		if l, err = lines.next(); err != nil {
			break
		}
		if l.body != nil {
			b := l.body.Clone()
			if err := b.Canonicalize(); err != nil {
				return out, err
			}
			out = append(out, fmt.Sprintf("%d %s", l.n, b))
			continue
		}
		s := fmt.Sprintf("%d! %s", l.n, l.name)
		for _, e := range l.errors {
			s += fmt.Sprintf(" %s:%s", e.Field, e.Code)
		}
		out = append(out, s)
	}
	if err == io.EOF {
		err = nil
	}
	return out, err
}

const plain = "sk_live_ABCDEFGHIJKLMNOPQRSTUVWXYZ01" // of the form of scribe's type

func TestImportLines(t *testing.T) {
	const digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	hashed := hexDigest(plain)
	for _, tt := range []struct {
		name, format, in string
		want             []string
	}{
		{"a digest", "jsonl", `{"digest":"` + digest + `","tenant":"t1","name":"ci","hint":"old_"}`, []string{`1 {"digest":"` + digest + `","hint":"old_","name":"ci","tenant":"t1"}`}},
		{"a key, its hint by its type", "jsonl", `{"key":"` + plain + `","tenant":"t1","name":"ci"}`, []string{`1 {"digest":"` + hashed + `","hint":"sk_live_ABCD","name":"ci","tenant":"t1"}`}},
		{"a key of no type", "jsonl", `{"key":"0123456789abcdef0123","tenant":"t1","name":"ci"}`, []string{`1 {"digest":"` + hexDigest("0123456789abcdef0123") + `","hint":"01234","name":"ci","tenant":"t1"}`}},
		{"a long key of no type", "jsonl", `{"key":"` + strings.Repeat("0123456789", 8) + `","tenant":"t1","name":"ci"}`,
			[]string{`1 {"digest":"` + hexDigest(strings.Repeat("0123456789", 8)) + `","hint":"01234567","name":"ci","tenant":"t1"}`}},
		{"empty lines, a mark, carriage returns", "jsonl", "\ufeff\r\n\n  \n" + `{"digest":"` + digest + `","tenant":"t1","name":"ci"}` + "\r\n\n", []string{`4 {"digest":"` + digest + `","name":"ci","tenant":"t1"}`}},
		{"both", "jsonl", `{"key":"` + plain + `","digest":"` + digest + `","tenant":"t1","name":"ci"}`, []string{"1! ci key:conflict"}},
		{"neither", "jsonl", `{"tenant":"t1","name":"ci"}`, []string{"1! ci digest:required"}},
		{"a key in the place of a digest", "jsonl", `{"digest":"` + plain + `","tenant":"t1","name":"ci"}`, []string{"1!  digest:invalid"}},
		{"a key that is the name too", "jsonl", `{"key":"` + plain + `","tenant":"t1","name":"` + plain + `"}`, []string{"1!  :secret"}},
		{"a key in the metadata, escaped", "jsonl", `{"key":"0123456789\"abcdef\\","tenant":"t1","name":"n","metadata":{"was":"0123456789\"abcdef\\"}}`, []string{"1!  :secret"}},
		{"a key that no verifier takes", "jsonl", `{"key":"short","tenant":"t1","name":"ci"}`, []string{"1! ci key:invalid"}},
		{"a key with a space at its end", "jsonl", `{"key":"` + plain + ` ","tenant":"t1","name":"ci"}`, []string{"1! ci key:invalid"}},
		{"an empty key", "jsonl", `{"key":"","tenant":"t1","name":"ci"}`, []string{"1! ci key:invalid"}},
		{"a hint beside a key", "jsonl", `{"key":"` + plain + `","hint":"sk_live_ABCDEFGH","tenant":"t1","name":"ci"}`, []string{"1! ci hint:conflict"}},
		{"faults do not stop what follows", "jsonl", "nonsense\n[]\n1\n" + `{"key":12345678901234567890,"name":"a"}` + "\n" + `{"no_such":1}` + "\n" +
			`{"limit":{"per_day":1}}` + "\n" + `{"name":"a","name":"b"}` + "\n{\"name\":\"\xff\"}\n" + strings.Repeat(" ", maxImportLine+5) + "\n" + `{"digest":"` + digest + `"}`,
			[]string{"1!  :invalid", "2!  :invalid", "3!  :invalid", "4!  key:invalid", "5!  no_such:unknown_field", "6!  limit.per_day:unknown_field", "7!  :invalid", "8!  :invalid", "9!  :invalid",
				`10 {"digest":"` + digest + `","name":"","tenant":""}`}},
		{"how the key stands", "jsonl", `{"digest":"` + digest + `","status":"revoked","revoke_code":"superseded","revoked_at":"2025-01-06T10:00:00Z"}`,
			[]string{`1 {"digest":"` + digest + `","name":"","revoke_code":"superseded","revoked_at":"2025-01-06T10:00:00Z","status":"revoked","tenant":""}`}},
		{"how keys stand, in columns", "csv", "digest,name,status,revoked_at,revoke_code,expires_at\n" + digest + ",a,revoked,2025-01-06T10:00:00Z,,\n" + digest + ",b,expired,,,2025-01-06T10:00:00Z\n",
			[]string{`2 {"digest":"` + digest + `","name":"a","revoked_at":"2025-01-06T10:00:00Z","status":"revoked","tenant":""}`, `3 {"digest":"` + digest + `","expires_at":"2025-01-06T10:00:00Z","name":"b","status":"expired","tenant":""}`}},
		{"null expires_at is never", "jsonl", `{"digest":"` + digest + `","expires_at":null,"scopes":[]}`, []string{`1 {"digest":"` + digest + `","expires_at":null,"name":"","scopes":[],"tenant":""}`}},

		{"columns", "csv", "\ufeffName,Tenant,KEY,scopes,roles,resources,allowlist,expires_at,limit.per_minute,limit.burst,metadata.Team,reason\r\n" +
			`"ci, ""main""",t1,` + plain + `,"read, write",,project/p1 project/p2,10.0.0.0/8;2001:db8::/32,never,60,5,build,we move`,
			[]string{`2 {"allowlist":["10.0.0.0/8","2001:db8::/32"],"digest":"` + hashed + `","expires_at":null,"hint":"sk_live_ABCD","limit":{"burst":5,"per_minute":60},"metadata":{"Team":"build"},"name":"ci, \"main\"","reason":"we move","resources":[{"id":"p1","kind":"project"},{"id":"p2","kind":"project"}],"scopes":["read","write"],"tenant":"t1"}`}},
		{"empty cells are as no columns, - is no scope", "csv", "digest,name,scopes,limit.plan,expires_at\n" + digest + ",a,,,\n" + digest + ",b,-,pro,2027-01-01T00:00:00Z\n",
			[]string{`2 {"digest":"` + digest + `","name":"a","tenant":""}`, `3 {"digest":"` + digest + `","expires_at":"2027-01-01T00:00:00Z","limit":{"plan":"pro"},"name":"b","scopes":[],"tenant":""}`}},
		{"lines over lines", "csv", "digest,name\n\n\"\n\",a\n" + digest + ",b\n", []string{"3!  digest:invalid", `5 {"digest":"` + digest + `","name":"b","tenant":""}`}},
		{"bad cells", "csv", "digest,name,resources,limit.burst\n" + digest + ",a,project,\n" + digest + ",b,-,many\n" + digest + ",c\n" + digest + ",d\"x,,\n" + digest + ",e,-,\n" + digest + ",f,,\n",
			[]string{"2!  resources:invalid", "3!  limit.burst:invalid", "4!  :invalid", "5!  :invalid", `6 {"digest":"` + digest + `","name":"e","tenant":""}`, "7!  resources:invalid"}},
		{"of a control character JSON makes six", "csv", "digest,name\n" + digest + "," + strings.Repeat("\x01", 200_000) + "\n", []string{"2! " + strings.Repeat("\x01", 100) + "… :invalid"}},
		{"no lines", "csv", "", nil},
		{"no lines", "jsonl", "\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readLines(tt.format, tt.in, true)
			if err != nil || strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("%v\n got %s\nwant %s", err, strings.Join(got, "\n     "), strings.Join(tt.want, "\n     "))
			}
		})
	}
	for _, tt := range []struct {
		name, format, in string
		plaintext        bool
		want             string
	}{
		{"no header", "csv", plain + ",t1,ci\n", true, "line 1: column 1 is none of"},
		{"a column twice", "csv", "digest,DIGEST\n", true, "column 2 stands twice"},
		{"a quote that is never closed", "csv", "digest,name\n\"" + strings.Repeat(plain+"\n", 100_000), true, "never closed"},
		{"plaintext in a file", "jsonl", "\n" + `{"key":"` + plain + `"}`, false, "line 2 holds a key in plain text"},
		{"a column of plaintext in a file", "csv", "key,name\n" + plain + ",a\n", false, "pipe it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readLines(tt.format, tt.in, tt.plaintext)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), plain) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

// FuzzImportLines: any text ends, each line is a body that the endpoint reads or a
// fault, and no fault repeats a secret that stands anywhere in the text.
func FuzzImportLines(f *testing.F) {
	for _, format := range []bool{false, true} {
		f.Add(format, `{"key":"`+plain+`","tenant":"t","name":"n"}`+"\n"+`{"`+plain+`":1}`)
		f.Add(format, "key,name\n"+plain+",n\n"+plain+"\n\""+plain)
		f.Add(format, plain+","+plain+"\n")
		f.Add(format, `{"key":"`+plain+`","limit":{"`+plain+`":1}}`)
		f.Add(format, `{"key":"`+plain+`","metadata":{"`+plain+`":`+plain+`}}`)
		f.Add(format, "digest,metadata.x,limit.burst\n"+plain+","+plain+","+plain)
		f.Add(format, `{"digest":"9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08","scopes":[],"expires_at":null,"roles":["a"],"allowlist":["b"]}`)
	}
	f.Fuzz(func(t *testing.T, asCSV bool, text string) {
		format := map[bool]string{false: "jsonl", true: "csv"}[asCSV]
		quiet := func(what string) {
			if strings.Contains(what, plain) {
				t.Fatalf("a secret is repeated: %s", strings.ReplaceAll(what, plain, "PLAIN"))
			}
		}
		lines, err := newImportLines(format, strings.NewReader(text), lineMaker{plaintext: true, hint: testHint})
		for last := 0; err == nil; {
			var l importLine
			if l, err = lines.next(); err != nil {
				break
			}
			if l.n <= last || (l.body == nil) == (len(l.errors) == 0) {
				t.Fatalf("line %d after %d: body %q, %v", l.n, last, l.body, l.errors)
			}
			last = l.n
			quiet(l.errors.Error())
			if l.body == nil {
				continue
			}
			var k commands.ImportKey
			if err := json.Unmarshal(l.body, &k, json.RejectUnknownMembers(true)); err != nil {
				t.Fatalf("the endpoint would not read %q: %v", l.body, err)
			}
			if again, err := json.Marshal(&k, json.Deterministic(true)); err != nil || !bytes.Equal(again, l.body) {
				t.Fatalf("%s came back as %s, %v", l.body, again, err)
			}
			if _, ok := commands.ParseDigest(k.Digest); !ok {
				t.Fatalf("not a digest goes over the wire: %q", l.body)
			}
		}
		quiet(err.Error())
	})
}

func TestHintOf(t *testing.T) {
	for secret, want := range map[string]string{plain: "sk_live_ABCD", plain[:20]: "sk_li", strings.Repeat("z", 256): "zzzzzzzz", strings.Repeat("z", 16): "zzzz"} {
		if got := scribe.Hint(secret); got != want {
			t.Errorf("%d characters: %q, want %q", len(secret), got, want)
		}
		if got := new(keyspace.Definition).Hint(secret); len(got) > 8 || len(got) > len(secret)/4 {
			t.Errorf("%d characters without a regime: %q", len(secret), got)
		}
	}
}

// importEndpoint answers imports: each key is imported the first time and already there
// after that.
type importEndpoint struct {
	t        *testing.T
	mu       sync.Mutex
	seen     map[string]bool
	requests []int // keys in each
	raw      bytes.Buffer
	before   func(n int) *api.Problem // of the n-th request
}

func newImportEndpoint(t *testing.T) (*importEndpoint, *httptest.Server) {
	d := &importEndpoint{t: t, seen: map[string]bool{}}
	s := httptest.NewServer(d)
	t.Cleanup(s.Close)
	return d, s
}

func (d *importEndpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Method == http.MethodGet {
		api.WriteJSON(w, r, 200, api.One{Data: keyspaceView{ID: "k", Definition: scribe}})
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		d.t.Error(err)
	}
	d.raw.Write(body)
	var c commands.Import
	if err := json.Unmarshal(body, &c, json.RejectUnknownMembers(true)); err != nil || len(body) > api.MaxBody {
		d.t.Errorf("a request of %d bytes: %v", len(body), err)
	}
	d.requests = append(d.requests, len(c.Keys))
	if d.before != nil {
		if p := d.before(len(d.requests)); p != nil {
			api.Write(w, r, p)
			return
		}
	}
	out := []commands.ImportResult{}
	for i, k := range c.Keys {
		res := commands.ImportResult{Index: i, Status: commands.ImportDone, ID: events.KeyID{1}}
		if k.Name == "bad" {
			res = commands.ImportResult{Index: i, Status: commands.ImportRefused, Errors: input.FieldErrors{{Field: "scopes[0]", Code: "unknown_scope", Message: "no"}}}
		} else if d.seen[k.Digest] {
			res.Status = commands.ImportAlready
		} else {
			d.seen[k.Digest] = true
		}
		out = append(out, res)
	}
	api.WriteJSON(w, r, 200, api.One{Data: out})
}

// importAt runs `keytrail key import` in this process with standard input.
func importAt(t *testing.T, url, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	setenv(t, "KEYTRAIL_ROOT_KEY", "kt_x")
	var out, errw bytes.Buffer
	code = run(t.Context(), append([]string{"--url", url, "key", "import", "--keyspace", "k"}, args...), strings.NewReader(stdin), &out, &errw)
	return out.String(), errw.String(), code
}

func plainLines(n int) (text string, secrets []events.Secret) {
	for i := range n {
		s := fmt.Sprintf("sk_live_%028d", i)
		secrets = append(secrets, events.NewSecret(s))
		text += fmt.Sprintf("{\"key\":%q,\"tenant\":\"t1\",\"name\":\"key %d\"}\n", s, i)
	}
	return text, secrets
}

func TestImportCommand(t *testing.T) {
	d, s := newImportEndpoint(t)
	text, secrets := plainLines(25)
	rejects := filepath.Join(t.TempDir(), "rejects.jsonl")
	lines := strings.SplitAfter(text, "\n")
	text = strings.Join(lines[:5], "") + `{"key":"` + plain + `","tenant":"t1","name":"bad"}` + "\nnonsense " + plain + "\n" + strings.Join(lines[5:], "")
	out, errs, code := importAt(t, s.URL, text, "--batch", "10", "--from", "the old gateway", "--rejects", rejects)
	if code != exitFailed || out != "27 lines: 25 imported, 0 already there, 2 refused\n" || !strings.Contains(errs, "2 of 27 lines were refused") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	kept, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"line":6,"tenant":"t1","name":"bad","errors":[{"field":"scopes[0]","code":"unknown_scope","message":"no"}]}` + "\n" +
		`{"line":7,"errors":[{"field":"","code":"invalid","message":"not valid JSON at byte 1"}]}` + "\n"
	if string(kept) != want {
		t.Errorf("rejects:\n%s\nwant\n%s", kept, want)
	}
	if fmt.Sprint(d.requests) != "[9 10 7]" { // lines at fault are in a batch and not in its request
		t.Errorf("requests of %v keys", d.requests)
	}
	out, errs2, code := importAt(t, s.URL, text)
	if code != exitFailed || !strings.HasPrefix(out, "27 lines: 0 imported, 25 already there, 2 refused") ||
		!strings.Contains(errs2, `line 6 "bad": scopes[0]: no`) || !strings.Contains(errs2, `line 7 "": : not valid JSON`) {
		t.Errorf("again: exit %d: %s%s", code, out, errs2)
	}
	out, errs3, code := importAt(t, s.URL, strings.Join(lines, ""), "--format", "jsonl", "--dry-run")
	if sent := d.raw.String(); code != 0 || strings.Count(sent, `"dry_run":true`) != 1 || strings.Count(sent, `"imported_from":"the old gateway"`) != 3 {
		t.Errorf("dry: exit %d: %s%s\nsent %s", code, out, errs3, sent)
	}
	var tally importTally
	out, _, code = cliAtWith(t, s.URL, strings.Join(lines, ""), "--json", "key", "import", "--keyspace", "k")
	unjson(t, out, &tally)
	if code != 0 || tally.Lines != 25 || tally.Already != 25 {
		t.Errorf("--json: exit %d %+v", code, tally)
	}
	logtest.CheckNoSecrets(t, append(kept, errs+errs2+errs3+out+d.raw.String()...), append(secrets, events.NewSecret(plain))...)
}

func cliAtWith(t *testing.T, url, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	setenv(t, "KEYTRAIL_ROOT_KEY", "kt_x")
	var out, errw bytes.Buffer
	code = run(t.Context(), append([]string{"--url", url}, args...), strings.NewReader(stdin), &out, &errw)
	return out.String(), errw.String(), code
}

// Big lines make small requests.
func TestImportFillsNoRequestTooFull(t *testing.T) {
	d, s := newImportEndpoint(t)
	var text strings.Builder
	for i := range 40 {
		fmt.Fprintf(&text, "{\"digest\":%q,\"name\":\"k\",\"metadata\":{\"a\":%q}}\n", hexDigest(fmt.Sprint(i)), strings.Repeat("x", 100_000))
	}
	out, errs, code := importAt(t, s.URL, text.String())
	if code != 0 || len(d.requests) < 4 || !strings.HasPrefix(out, "40 lines: 40 imported") {
		t.Errorf("exit %d in requests of %v: %s%.300s", code, d.requests, out, errs)
	}
}

func TestImportPlaintextComesFromStandardInputOnly(t *testing.T) {
	d, s := newImportEndpoint(t)
	text, secrets := plainLines(3)
	out, errs, code := importAt(t, s.URL, "", "-f", writeFile(t, "keys.jsonl", text))
	if code != exitFailed || !strings.Contains(errs, "line 1 holds a key in plain text") || !strings.Contains(errs, "pipe it") || len(d.requests) > 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	logtest.CheckNoSecrets(t, []byte(out+errs), secrets...)
	out, errs, code = importAt(t, s.URL, "", "-f", writeFile(t, "keys.csv", "digest,tenant,name\n"+hexDigest("a")+",t1,a\n"))
	if code != 0 || !strings.HasPrefix(out, "1 lines: 1 imported") {
		t.Errorf("digests in a file: exit %d: %s%s", code, out, errs)
	}
	for _, args := range [][]string{{"-f", "keys.txt"}, {"--format", "xml"}, {"--batch", "0"}, {"--batch", "501"}, {"--from", ""}} {
		if _, errs, code := importAt(t, s.URL, "", args...); code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, code, errs)
		}
	}
}

// importing is a call whose pauses are counted and not waited for.
func importing(url string, stdin io.Reader, pause func()) (*importCall, *bytes.Buffer) {
	var out, errw bytes.Buffer
	i := &importCall{app: &app{in: stdin, out: &out, err: &errw, url: url}, keyspace: "k", file: "-", batch: 2,
		pause: func(context.Context, time.Duration) { pause() }}
	i.client = &client.Client{Base: url}
	return i, &errw
}

// An endpoint that does not answer for a while is asked again; one that refuses is not.
func TestImportAsksAgain(t *testing.T) {
	t.Setenv("KEYTRAIL_ROOT_KEY", "kt_x")
	text, _ := plainLines(6)
	for _, tt := range []struct {
		name   string
		before func(n int) *api.Problem
		pauses int
		ok     bool
	}{
		{"two times", func(n int) *api.Problem {
			if n == 2 || n == 3 {
				return api.Unavailable(1, "not now")
			}
			return nil
		}, 2, true},
		{"for ever", func(n int) *api.Problem {
			if n > 1 {
				return api.Unavailable(1, "not now")
			}
			return nil
		}, importTries - 1, false},
		{"refused", func(n int) *api.Problem { return api.Errorf(http.StatusForbidden, "scope_missing", "no") }, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, s := newImportEndpoint(t)
			d.before = tt.before
			pauses := 0
			i, errw := importing(s.URL, strings.NewReader(text), func() { pauses++ })
			err := i.run(t.Context())
			if (err == nil) != tt.ok || pauses != tt.pauses {
				t.Errorf("%d pauses, err = %v", pauses, err)
			}
			if !tt.ok && !strings.Contains(errw.String(), "run the same command again") {
				t.Errorf("it does not say how to go on: %s", errw)
			}
			if tt.ok && i.tally.Imported != 6 {
				t.Errorf("%+v", i.tally)
			}
		})
	}
}

// An interrupt ends the import after the batch under way, also when standard input
// does not end.
func TestImportInterrupted(t *testing.T) {
	t.Setenv("KEYTRAIL_ROOT_KEY", "kt_x")
	d, s := newImportEndpoint(t)
	ctx, interrupt := context.WithCancel(t.Context())
	d.before = func(n int) *api.Problem {
		if n == 2 {
			interrupt()
		}
		return nil
	}
	text, _ := plainLines(4)
	r, w := io.Pipe()
	defer w.Close()
	go io.WriteString(w, text) // ends with the pipe
	i, _ := importing(s.URL, r, func() { t.Error("it paused") })
	err := i.run(ctx)
	// The fifth line never comes: the third batch is under way in the pipe for ever.
	if err == nil || !strings.Contains(err.Error(), "interrupted after line 4") || i.tally.Imported != 4 {
		t.Errorf("%v, %+v", err, i.tally)
	}
}

// TestImportKilled is the move of a product: 2,000 keys in plain text by a pipe,
// the command killed in the middle and run again. Every key answers, and its
// plaintext is nowhere.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	const keys = 2000
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir)
	p.must(t, "keyspace", "apply", "-f", regime)
	text, secrets := plainLines(keys)
	rejects := filepath.Join(t.TempDir(), "rejects.jsonl")
	start := func(stdin io.Reader) (*exec.Cmd, *lockedBuffer) {
		out := new(lockedBuffer)
		cmd := exec.Command(os.Args[0], "--url", p.url, "key", "import", "--keyspace", "scribe-sight", "-f", "-", "--from", "the old gateway", "--batch", "50", "--rejects", rejects)
		cmd.Env = append(os.Environ(), asMain+"=1", "KEYTRAIL_ROOT_KEY="+p.root)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, out
	}
	count := func() int {
		_, _, body := p.raw(t, "GET", "/metrics", nil, nil)
		for line := range strings.Lines(string(body)) {
			var n int
			if _, err := fmt.Sscanf(line, `keytrail_imported_keys_total{status="imported"} %d`, &n); err == nil {
				return n
			}
		}
		return 0
	}

	// The pipe stays open after three quarters, so the command cannot be done.
	part := strings.Join(strings.SplitAfter(text, "\n")[:keys*3/4], "")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd, out1 := start(r)
	r.Close()
	go io.WriteString(w, part) // ends with the pipe's other end
	eventually(t, func() string {
		if n := count(); n < 300 {
			return fmt.Sprintf("%d keys imported\n%s", n, out1.String())
		}
		return ""
	})
	cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Fatal("the command ended well, killed")
	}
	cmd, out2 := start(strings.NewReader(text))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("again: %v\n%s", err, out2.String())
	}
	var lines, imported, already int
	summary := out2.String()[strings.LastIndex(strings.TrimRight(out2.String(), "\n"), "\n")+1:]
	if _, err := fmt.Sscanf(summary, "%d lines: %d imported, %d already there, 0 refused\n", &lines, &imported, &already); err != nil ||
		lines != keys || imported+already != keys || already < 300 || imported < keys/4 {
		t.Fatalf("again: %v\n%s", err, out2.String())
	}
	eventually(t, func() string { // the view reaches what another process wrote
		last := p.verify(t, map[string]any{"key": secrets[keys-1].Reveal(), "keyspace": "scribe-sight", "scope": "read"})
		if last["reason"] != "ok" {
			return fmt.Sprint("the last key: ", last)
		}
		return ""
	})
	ids := map[any]bool{}
	for _, s := range secrets {
		v := p.wantReason(t, "ok", map[string]any{"key": s.Reveal(), "keyspace": "scribe-sight", "scope": "read"})
		ids[v["key_id"]] = true
	}
	if len(ids) != keys {
		t.Errorf("%d secrets are those of %d keys", keys, len(ids))
	}
	if out, errs, code := p.proves(t, "key", "history", fmt.Sprint(anyOf(ids))); code != 0 || !strings.Contains(out, "key.imported") {
		t.Errorf("history: exit %d %s%s", code, out, errs)
	}

	// A digest that is here under another tenant, and one of a key that was made here.
	made := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "made here"})
	stolen := fmt.Sprintf("{\"key\":%q,\"tenant\":\"other\",\"name\":\"a\"}\n{\"key\":%q,\"tenant\":\"acme\",\"name\":\"b\"}\n", secrets[0].Reveal(), made["key"])
	cmd, out3 := start(strings.NewReader(stolen))
	if err := cmd.Wait(); err == nil {
		t.Errorf("known digests were taken: %s", out3.String())
	}
	refused, err := os.ReadFile(rejects)
	if err != nil || strings.Count(string(refused), "digest_known") != 2 || !strings.Contains(string(refused), made["id"].(string)) {
		t.Errorf("%v: %s", err, refused)
	}

	p.stop(t)
	secrets = append(secrets, events.NewSecret(made["key"].(string)))
	haystack := []byte(out1.String() + out2.String() + out3.String() + p.stdout.String() + p.stderr.String() + string(refused))
	err = filepath.WalkDir(filepath.Dir(dir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		haystack = append(haystack, b...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(haystack, []byte(hexDigest(secrets[7].Reveal()))) {
		t.Error("the digests are not where the plaintext is looked for")
	}
	common := []byte("sk_live_0000000000000000000000") // the start of all of them: longer than any hint
	if bytes.Contains(haystack, common) {
		logtest.CheckNoSecrets(t, haystack, secrets...)
		t.Error("a start of the secrets that is longer than a hint is kept")
	}
	logtest.CheckNoSecrets(t, haystack, secrets[len(secrets)-1])
}

func anyOf(m map[any]bool) any {
	for k := range m {
		return k
	}
	return nil
}
