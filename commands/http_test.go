package commands_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

var update = flag.Bool("update", false, "write the answers that the stories get into them")

// TestStories plays testdata/*.txt: requests to the control endpoint and the exact
// answers. A line is
//
//	# a comment
//	@ 1h                        the clock steps
//	> METHOD PATH [as NAME] [Header: value]    then lines of body, if any
//	< STATUS [Header: value ...]               then the body's JSON
//	= NAME                      the data's id is {NAME} from here on, its secret {NAME.key}
//	                            with the digest {NAME.digest}, the role that was made with it
//	                            {NAME.role}
//
// In answers ids and secrets that have a name, positions, cursors, ULIDs and
// digests are shown as {…}. {cursor} in a path is the last cursor seen.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			old, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := &story{world: newWorld(t), names: map[string]string{}, keys: map[string]events.Secret{}}
			s.n = s.node("one")
			s.keys["root"] = s.root
			s.names["root"] = s.rootID.String()
			got := s.play(string(old))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(old) {
				a, b := strings.Split(string(old), "\n"), strings.Split(got, "\n")
				for i := range min(len(a), len(b)) {
					if a[i] != b[i] {
						t.Fatalf("%s:%d:\n got %s\nwant %s", file, i+1, b[i], a[i])
					}
				}
				t.Fatalf("%s: %d lines, want %d", file, len(b), len(a))
			}
		})
	}
}

type story struct {
	*world
	n      *node
	names  map[string]string // name -> id
	keys   map[string]events.Secret
	cursor string
	last   *httptest.ResponseRecorder
}

func (s *story) play(text string) string {
	var out strings.Builder
	var request string
	var body []string
	send := func() {
		if request != "" {
			out.WriteString(s.send(request, strings.Join(body, "\n")))
		}
		request, body = "", nil
	}
	answer := false // skipping the old answer
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "<"):
			send()
			answer = true
			continue
		case answer && strings.HasPrefix(line, "{"):
			continue
		}
		answer = false
		if request != "" && line != "" && !strings.ContainsAny(line[:1], "#@>=") {
			body = append(body, line)
			out.WriteString(line + "\n")
			continue
		}
		send()
		out.WriteString(line + "\n")
		switch {
		case strings.HasPrefix(line, "> "):
			request = line[2:]
		case strings.HasPrefix(line, "@ "):
			d, err := time.ParseDuration(line[2:])
			if err != nil {
				s.Fatal(err)
			}
			s.clock.step(d)
		case strings.HasPrefix(line, "= "):
			name := line[2:]
			if s.names[name] = member(s, s.last, "id"); s.names[name] == "" {
				s.Fatalf("%s has no id: %d %s", name, s.last.Code, s.last.Body)
			}
			if key := member(s, s.last, "key"); key != "" {
				s.keys[name] = events.NewSecret(key)
				s.secrets = append(s.secrets, s.keys[name])
			}
			// The answer was printed before it had a name.
			shown := s.show(out.String())
			out.Reset()
			out.WriteString(shown)
		}
	}
	send()
	return out.String()
}

func (s *story) send(line, body string) string {
	fields := strings.Fields(s.fill(line))
	who, header := s.root, []string{}
	rest := fields[2:]
	if len(rest) >= 2 && rest[0] == "as" {
		who, rest = s.keys[rest[1]], rest[2:]
	}
	for i := 0; i+1 < len(rest); i += 2 {
		header = append(header, strings.TrimSuffix(rest[i], ":"), rest[i+1])
	}
	s.last = s.n.do(who, fields[0], fields[1], s.fill(body), header...)
	if c := member(s, s.last, "next_cursor"); c != "" {
		s.cursor = c
	}
	status := fmt.Sprintf("< %d", s.last.Code)
	for _, name := range []string{"Idempotent-Replayed", "Preference-Applied", "Content-Type"} {
		v := s.last.Header().Get(name)
		if v != "" && (name != "Content-Type" || s.last.Header().Get("Preference-Applied") != "") {
			status += " " + name + ": " + v
		}
	}
	logtest.CheckLog(s, s.log)
	return status + "\n" + s.show(s.last.Body.String()) + "\n"
}

func (s *story) fill(text string) string {
	for name, id := range s.names {
		text = strings.ReplaceAll(text, "{"+name+"}", id)
		text = strings.ReplaceAll(text, "{"+name+".role}", strings.ToLower(id))
	}
	for name, key := range s.keys {
		text = strings.ReplaceAll(text, "{"+name+".key}", key.Reveal())
		text = strings.ReplaceAll(text, "{"+name+".digest}", hexOf(key.Reveal()))
	}
	return strings.ReplaceAll(text, "{cursor}", s.cursor)
}

var (
	positionRE = regexp.MustCompile(`"position":"([A-Za-z0-9_-]{50})"`)
	cursorRE   = regexp.MustCompile(`"next_cursor":"[^"{]*"`)
	ulidRE     = regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{26}\b`)
	hexRE      = regexp.MustCompile(`\b[0-9a-f]{64}\b`)
)

func (s *story) show(text string) string {
	for name, id := range s.names {
		text = strings.ReplaceAll(text, id, "{"+name+"}")
		text = strings.ReplaceAll(text, strings.ToLower(id), "{"+name+".role}")
	}
	for name, key := range s.keys {
		text = strings.ReplaceAll(text, key.Reveal(), "{"+name+".key}")
	}
	text = positionRE.ReplaceAllStringFunc(text, func(m string) string {
		p, err := events.ParsePosition(positionRE.FindStringSubmatch(m)[1])
		if want := logtest.PositionAt(s.log.ID(), s.log.Records(), p.Seq); err != nil || p != want {
			s.Errorf("%s: not a position of this log: %v, %v, want %v", m, err, p, want)
		}
		return fmt.Sprintf(`"position":"{at %d}"`, p.Seq)
	})
	text = cursorRE.ReplaceAllString(text, `"next_cursor":"{cursor}"`)
	text = hexRE.ReplaceAllString(text, "{sha256}")
	return ulidRE.ReplaceAllString(text, "{ulid}")
}

// TestSecretsAreShownOnce greps every answer but the one for the secret.
func TestSecretsAreShownOnce(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	first := n.do(w.root, "POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"a"}`, "Idempotency-Key", "k1")
	secret, id := events.NewSecret(member(t, first, "key")), member(t, first, "id")
	w.secrets = append(w.secrets, secret)
	var all bytes.Buffer
	path := "/v1/keys/" + id
	for _, r := range [][]string{
		{"POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"a"}`, "Idempotency-Key", "k1"},
		{"GET", path, ""}, {"GET", path + "/history", ""}, {"GET", "/v1/keyspaces/acme/keys", ""},
		{"PATCH", path, `{"name":"b"}`}, {"POST", path + "/disable", ""}, {"POST", path + "/enable", ""}, {"DELETE", path, ""},
		{"POST", path + "/rotate", `{}`},
		{"GET", path + "?as_of=" + start, ""},
		{"GET", path + "?" + secret.Reveal() + "=1", ""},
		{"POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"c","` + secret.Reveal() + `":1}`},
	} {
		rec := n.do(w.root, r[0], r[1], r[2], r[3:]...)
		if strings.Contains(r[1]+r[2], secret.Reveal()) {
			continue // the caller's own words, which an answer may name; the log may not
		}
		if rec.Code >= 500 {
			t.Errorf("%s %s: %d", r[0], r[1], rec.Code)
		}
		fmt.Fprint(&all, rec.Header(), rec.Body)
	}
	logtest.CheckNoSecrets(t, all.Bytes(), secret, w.root)
}

// FuzzHTTP sends anything to any route: the answer is never a 5xx, an error is
// always a problem, and the log is whole after it.
func FuzzHTTP(f *testing.F) {
	for i := range routes {
		f.Add(uint8(i), `{"tenant":"t1","name":"n","scopes":["read"],"reason":"r"}`, "", "")
		f.Add(uint8(i), `{"allowlist":["10.0.0.0/8","::ffff:1.2.3.4"],"expires_in":"30d","limit":{"plan":"pro"}}`, "a=b", "key-1")
		f.Add(uint8(i), `{"limit":null,"expires_at":null,"resources":[{"kind":"project","id":"p"}]}`, "limit=0&cursor=x", `"q"`)
		f.Add(uint8(i), `{"key_types":[{"name":"a"}],"scopes":[{"name":"s"}],"overlap":"1h","code":"key_compromise"}`, "code=superseded&reason=%00", "\x7f")
		f.Add(uint8(i), "{\"name\":\"\xff\"}", "as_of=2026-01-01T00:00:00Z&status=active&tenant=*", "")
		f.Add(uint8(i), `{"key_types":[{"name":"a"}],"grants":{"required":true}}`, "dry_run=true", "k")
		f.Add(uint8(i), `{"key_types":[{"name":"a"}]}`, "accept_violations=true", "k")
		f.Add(uint8(i), `{"tenant":"t1","name":"n","permissions":{"level":"division","scopes":["deploy"]},"resources":[{"kind":"division","id":"d"}]}`, "dry_run=maybe", "k")
		f.Add(uint8(i), `{"keys":[{"digest":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","tenant":"t1","name":"n","hint":"h"},{"digest":"\u0000","tenant":"t1"}],"imported_from":"x"}`, "", "key-2")
		f.Add(uint8(i), `[]`, "name=%ff", strings.Repeat("k", 256))
		f.Add(uint8(i), `{"name":1,"name":2}`, "%zz", " ")
	}
	f.Fuzz(func(t *testing.T, route uint8, body, query, idempotency string) {
		w := newWorld(t)
		n := w.node("one")
		w.define(n, "acme", acme)
		key := w.create(n, "acme", newCreate("t1", "given")).Key
		method, path, _ := strings.Cut(routes[int(route)%len(routes)], " ")
		r := httptest.NewRequest(method, strings.ReplaceAll(path, "{id}", key.ID.String()), strings.NewReader(body))
		r.URL.RawQuery = query
		r.Header.Set("Authorization", "Bearer "+w.root.Reveal())
		if idempotency != "" {
			r.Header.Set("Idempotency-Key", idempotency)
		}
		size := len(w.log.Records())
		rec := httptest.NewRecorder()
		n.mux.ServeHTTP(rec, r)
		if rec.Code >= 500 {
			t.Errorf("%s %s: %d %s", method, path, rec.Code, rec.Body)
		}
		if rec.Code >= 400 {
			if ct := rec.Header().Get("Content-Type"); ct != "application/problem+json" || member(t, rec, "code") == "" {
				t.Errorf("%s %s: %d as %s: %s", method, path, rec.Code, ct, rec.Body)
			}
			if len(w.log.Records()) != size {
				t.Errorf("%s %s: %d, and yet something was written", method, path, rec.Code)
			}
		}
		if key := member(t, rec, "key"); key != "" {
			w.secrets = append(w.secrets, events.NewSecret(key))
		}
	})
}

var routes = []string{
	"GET /v1/keyspaces", "GET /v1/keyspaces/acme", "PUT /v1/keyspaces/acme", "PUT /v1/keyspaces/new", "PUT /v1/keyspaces/B*d",
	"POST /v1/keyspaces/acme/keys", "GET /v1/keyspaces/acme/keys", "POST /v1/keyspaces/keytrail/keys",
	"POST /v1/keyspaces/acme/keys/import", "POST /v1/keyspaces/keytrail/keys/import",
	"GET /v1/keys/{id}", "GET /v1/keys/key_x", "GET /v1/keys/{id}/history", "PATCH /v1/keys/{id}",
	"PUT /v1/keys/{id}/scopes", "PUT /v1/keys/{id}/resources", "PUT /v1/keys/{id}/allowlist", "PUT /v1/keys/{id}/limit",
	"POST /v1/keys/{id}/disable", "POST /v1/keys/{id}/enable", "DELETE /v1/keys/{id}", "POST /v1/keys/{id}/rotate",
	"GET /v1/keyspaces/acme/tenants/t1/roles", "GET /v1/keyspaces/acme/tenants/t1/roles/dev",
	"GET /v1/keyspaces/acme/tenants/t1", "GET /v1/keyspaces/acme/tenants/*", "PUT /v1/keyspaces/acme/tenants/t1/limit", "PUT /v1/keyspaces/keytrail/tenants/%3E/limit",
	"PUT /v1/keyspaces/acme/tenants/t1/roles/dev", "DELETE /v1/keyspaces/acme/tenants/t1/roles/dev", "PUT /v1/keyspaces/acme/tenants/*/roles/%3E",
}
