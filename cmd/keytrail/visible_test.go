package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/internal/api"
)

func TestVisible(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain äöü 日本 👍🏽 a\tb\r\n", "plain äöü 日本 👍🏽 a\tb\r\n"},
		{"\x1b[2J\x1b]0;title\x07", `\u001b[2J\u001b]0;title\u0007`},
		{"\u009b31m", `\u009b31m`},
		{"a\u202eb\u2066c\u200bd\ufeffe\u2028f", `a\u202eb\u2066c\u200bd\ufeffe\u2028f`},
		{"\U000e0041", `\udb40\udc41`},
		{"\xffx", `\ufffdx`},
	} {
		var out bytes.Buffer
		if n, err := (&visible{w: &out}).Write([]byte(tt.in)); n != len(tt.in) || err != nil || out.String() != tt.want {
			t.Errorf("%q: %q, %d, %v; want %q", tt.in, out.String(), n, err, tt.want)
		}
		// Byte by byte it is the same: a character may come in parts.
		out.Reset()
		v := &visible{w: &out}
		for i := range len(tt.in) {
			if _, err := v.Write([]byte{tt.in[i]}); err != nil {
				t.Fatal(err)
			}
		}
		if out.String() != tt.want {
			t.Errorf("%q in parts: %q", tt.in, out.String())
		}
	}
	if got, want := cells("a\tb", "c\nd", "e\x1b"), `a\u0009b`+"\t"+`c\u000ad`+"\t"+`e\u001b`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzVisible(f *testing.F) {
	f.Add("a\x1b\u202e", "\xe2\x80")
	f.Fuzz(func(t *testing.T, a, b string) {
		var out bytes.Buffer
		v := &visible{w: &out}
		v.Write([]byte(a))
		v.Write([]byte(b))
		for _, r := range out.String() {
			if r == utf8.RuneError || !unicode.IsGraphic(r) && r != '\n' && r != '\t' && r != '\r' {
				t.Fatalf("%q: %U is written", a+b, r)
			}
		}
		if strings.ContainsAny(cells(a, b), "\n\r") || strings.Count(cells(a, b), "\t") != 1 {
			t.Errorf("%q leaves its cell", cells(a, b))
		}
		// What is JSON means the same afterwards.
		quoted, err := json.Marshal(a)
		if err != nil {
			return
		}
		out.Reset()
		(&visible{w: &out}).Write(quoted)
		var back string
		if err := json.Unmarshal(out.Bytes(), &back); err != nil || back != a {
			t.Errorf("%q: %q, %v", a, back, err)
		}
	})
}

// TestNothingIsPrintedRaw: whatever text a server answers with, no command prints
// of it what a terminal obeys or what cannot be seen: not in a table, not in an
// error, not as JSON.
func TestNothingIsPrintedRaw(t *testing.T) {
	const evil = "x\x1b[2J\x1b]8;;http://evil\x07\u202e\u200b\u009b\ny\tz"
	key := map[string]any{"id": evil, "name": evil, "tenant": evil, "hint": evil, "status": evil, "keyspace": evil, "type": evil, "scopes": []string{evil},
		"roles": []string{evil}, "metadata": map[string]string{evil: evil}, "expires_at": evil, "reason": evil, "definition": map[string]any{"title": evil}}
	status := 200
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body any = map[string]any{"data": key, "position": evil}
		if r.Method == "GET" && (strings.HasSuffix(r.URL.Path, "s") || strings.HasSuffix(r.URL.Path, "history")) {
			body = map[string]any{"data": []any{key}, "next_cursor": nil}
		}
		if status >= 400 {
			p := api.Errorf(status, evil, "%s", evil)
			p.RequestID = evil
			p.Errors.Add(evil, "invalid", evil)
			body = p
		}
		w.WriteHeader(status)
		json.MarshalWrite(w, body)
	}))
	defer s.Close()
	id := "key_" + strings.Repeat("0", 25) + "1"
	commands := [][]string{
		{"key", "get", id}, {"key", "list", "--keyspace", "k"}, {"key", "list", "--keyspace", "k", "--all"}, {"key", "history", id}, {"key", "disable", id},
		{"keyspace", "list"}, {"keyspace", "get", "k"}, {"role", "list", "--keyspace", "k", "--tenant", "t"}, {"role", "get", "r", "--keyspace", "k", "--tenant", "t"},
		{"tenant", "get", "t", "--keyspace", "k"}, {"audit", "events"}, {"audit", "uses"}, {"audit", "usage"}, {"audit", "blocks"},
		{"key", "create", "--keyspace", "k", "--tenant", "t", "--name", "n"}, {"key", "rotate", id}, {"doctor"},
	}
	for _, status = range []int{200, 422} {
		for _, args := range commands {
			for _, form := range [][]string{args, append([]string{"--json"}, args...)} {
				out, errs, _ := cliAt(t, s.URL, "kt_x", form...)
				if strings.ContainsFunc(out+errs, func(r rune) bool { return !unicode.IsGraphic(r) && r != '\n' && r != '\t' && r != '\r' }) {
					t.Errorf("%d %v: %q %q", status, form, out, errs)
				}
				if form[0] != "--json" && strings.Contains(out+errs, "\ny") {
					t.Errorf("%d %v: the line is broken: %q %q", status, form, out, errs)
				}
			}
		}
	}
}

// TestCommandLineRepeatsNoSecret: wherever a secret is put by mistake, the command
// line does not repeat it, and where an id belongs it sends nothing.
func TestCommandLineRepeatsNoSecret(t *testing.T) {
	sent := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent++
		w.WriteHeader(404)
		w.Write([]byte(`{"title":"Not Found","status":404,"code":"not_found"}`))
	}))
	defer s.Close()
	for _, secret := range []string{"sk_live_4f9Zk2Lm8QpR7sT1uVwXyZ0aBcDeFgHi", "an-old-secret-of-words-only", "kt_0123456789abcdefghijABCDEFGHIJ0123456789"} {
		for _, args := range [][]string{
			{"key", "get", secret}, {"key", "history", secret}, {"key", "revoke", secret}, {"key", "rotate", secret}, {"key", "disable", secret},
			{"key", "update", secret, "--name", "x"}, {"key", "scopes", secret, "--scope", "x"}, {"key", "allowlist", secret, "--add", "::/0"},
			{"verify", secret}, {"bench", secret}, {"bench", "verify", secret}, {"bench", "verify", "--verifier", secret}, {secret}, {"key", secret}, {"key", "get", "a", secret}, {"key", "list", secret},
			{"--" + secret}, {"-" + secret}, {"key", "list", "--keyspace", "k", "--limit", secret}, {"key", "list", "--keyspace", "k", "--limit=" + secret},
			{"--log-level", secret, "log"}, {"key", "create", "--keyspace", "k", "--tenant", "t", "--name", "n", "--resource", secret},
			{"--clickhouse", "clickhouse://u:" + secret + "@h:9000/d", "up"}, {"doctor", "--deep", "--clickhouse", "clickhouse://u:" + secret + "@h:9000/d"},
			{"--url", "http://u:" + secret + "@127.0.0.1:1", "key", "list", "--keyspace", "k"},
		} {
			var out, errw bytes.Buffer
			setenv(t, "KEYTRAIL_ROOT_KEY", "kt_x")
			code := run(t.Context(), append([]string{"--url", s.URL}, args...), strings.NewReader(""), &out, &errw)
			if code == 0 || strings.Contains(out.String()+errw.String(), secret) {
				t.Errorf("%q: exit %d\n%s%s", args, code, out.String(), errw.String())
			}
		}
	}
	if sent != 0 {
		t.Errorf("%d requests were sent", sent)
	}
	// The server refuses what only it can tell.
	if _, errs, code := cliAt(t, s.URL, "kt_x", "key", "get", "key_"+strings.Repeat("0", 25)+"1"); code != exitFailed || sent != 1 {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// TestSecretsComeFromFiles: from a file, standard input or the environment.
func TestSecretsComeFromFiles(t *testing.T) {
	var got string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Key string `json:"key"`
		}
		json.UnmarshalRead(r.Body, &body)
		got = body.Key
		w.Write([]byte(`{"allowed":true,"reason":"ok","status":200}`))
	}))
	defer s.Close()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	setenv(t, "KEYTRAIL_SECRET", "from-the-environment")
	setenv(t, "KEYTRAIL_ROOT_KEY", "kt_x")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"verify"}, "from-the-environment"},
		{[]string{"verify", "--secret-file", file}, "from-a-file"},
		{[]string{"verify", "--secret-file", "-"}, "from-standard-input"},
		{[]string{"verify", "--secret-file", file + ".not"}, ""},
		{[]string{"verify", "--secret-file", os.DevNull}, ""},
	} {
		got = ""
		var out, errw bytes.Buffer
		code := run(t.Context(), append([]string{"--url", s.URL}, tt.args...), strings.NewReader(" from-standard-input\n"), &out, &errw)
		if got != tt.want || (code == 0) != (tt.want != "") {
			t.Errorf("%q: %q, exit %d %s", tt.args, got, code, errw.String())
		}
	}
}
