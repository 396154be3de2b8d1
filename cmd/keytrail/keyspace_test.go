package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// The endpoint gets the definition with its members in the order of the file, and
// what it refuses is told on the lines of the file.
func TestApplyTellsTheLine(t *testing.T) {
	var body string
	var refuse error
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		body = r.Method + " " + r.URL.Path + " " + string(b)
		if refuse != nil {
			api.Write(w, r, refuse)
			return
		}
		w.Write([]byte(`{"data":{"id":"shop","rev":1,"definition":{"key_types":[]}}}`))
	}))
	defer endpoint.Close()
	file := writeFile(t, "shop.yaml", "title: Shop\nname: shop\nkey_types:\n  - prefix: sk_\n    name: secret\n")
	apply := func(more ...string) (string, int) {
		t.Helper()
		_, errs, code := cliAt(t, endpoint.URL, "kt_x", append([]string{"keyspace", "apply", "-f", file}, more...)...)
		return errs, code
	}

	if errs, code := apply("--reason", "first"); code != 0 || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	if want := `PUT /v1/keyspaces/shop {"title":"Shop","key_types":[{"prefix":"sk_","name":"secret"}],"reason":"first"}`; body != want {
		t.Errorf("the endpoint got\n%s\nwant\n%s", body, want)
	}

	refuse = api.Invalid(input.FieldErrors{
		{Field: "key_types[0].name", Code: "duplicate", Message: "is taken"},
		{Field: "reason", Code: "invalid", Message: "want no control characters"},
		{Field: "key_types[0].prefix", Code: "duplicate", Message: "is taken too"},
	})
	errs, code := apply("--reason", "again")
	want := "keytrail: 3 invalid fields (422 invalid)\n" +
		"  --reason: want no control characters\n" +
		file + ":4:5: key_types[0].prefix: is taken too (server)\n" +
		file + ":5:5: key_types[0].name: is taken (server)\n"
	if code != exitFailed || errs != want {
		t.Errorf("exit %d:\n%s\nwant\n%s", code, errs, want)
	}

	refuse = api.Errorf(http.StatusForbidden, "scope_missing", "no")
	if errs, code := apply(); code != exitFailed || errs != "keytrail: no (403 scope_missing)\n" {
		t.Errorf("exit %d: %s", code, errs)
	}

	// What can be told here is not asked of an endpoint.
	body = ""
	file = writeFile(t, "shop.yaml", "name: shop\nkey_types:\n  - nam: secret\n")
	errs, code = apply()
	want = file + ":3:5: key_types[0].nam: no such member; did you mean name? (schema)\n" +
		file + ":3:5: key_types[0].name: the member is missing (schema)\n"
	if code != exitFailed || errs != want || body != "" {
		t.Errorf("exit %d, the endpoint got %q:\n%s\nwant\n%s", code, body, errs, want)
	}
}

func TestKeyspaceValidate(t *testing.T) {
	good := writeFile(t, "good.yaml", "name: shop\nkey_types: [{name: secret}]\n")
	bad := writeFile(t, "bad.json", "{\n \"name\": \"shop\"\n}\n")
	gone := filepath.Join(t.TempDir(), "gone.yaml")
	const stdin = "name: piped\nkey_types: [{name: secret}]\n"
	missing := bad + ":1:1: key_types: the member is missing (schema)\n"
	for _, tt := range []struct {
		name      string
		args      []string
		code      int
		out, errs string
	}{
		{"one", []string{"-f", good}, 0, good + ": ok\n", ""},
		{"bad", []string{"-f", bad}, exitFailed, "", missing},
		{"several", []string{"-f", bad, "-f", good}, exitFailed, good + ": ok\n", missing},
		{"as a shell expands it", []string{"-f", good, bad, gone}, exitFailed, good + ": ok\n", missing + gone + ": cannot be read: no such file or directory (file)\n"},
		{"standard input", []string{"-f", "-"}, 0, "stdin: ok\n", ""},
		{"none", nil, exitUsage, "", "keytrail: want -f FILE; see 'keytrail keyspace validate --help'\n"},
		{"json", []string{"--json", "-f", good, bad}, exitFailed,
			`{"file":"` + good + `","keyspace":"shop","ok":true,"faults":[]}` + "\n" +
				`{"file":"` + bad + `","keyspace":"shop","ok":false,"faults":[{"file":"` + bad + `","line":1,"column":1,"field":"key_types","message":"the member is missing","source":"schema"}]}` + "\n", missing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errw bytes.Buffer
			// No server stands at the address.
			args := append([]string{"--url", "http://127.0.0.1:1", "keyspace", "validate"}, tt.args...)
			code := run(context.Background(), args, strings.NewReader(stdin), &out, &errw)
			if code != tt.code || out.String() != tt.out || errw.String() != tt.errs {
				t.Errorf("exit %d\n%s%s\nwant %d\n%s%s", code, &out, &errw, tt.code, tt.out, tt.errs)
			}
		})
	}
}
