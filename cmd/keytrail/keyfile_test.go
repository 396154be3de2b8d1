package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNamedKeyFile: whoever names the file of an operator key acts with that key,
// or not at all. Only the default file may be absent.
func TestNamedKeyFile(t *testing.T) {
	var presented []string
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		presented = append(presented, r.Header.Get("Authorization"))
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"data":[],"next_cursor":null}`))
	}))
	defer endpoint.Close()
	t.Chdir(t.TempDir())
	dir := t.TempDir()
	auditor, absent := filepath.Join(dir, "auditor.key"), filepath.Join(dir, "absent.key")
	if err := os.WriteFile(auditor, []byte("kt_auditor\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty, two, bom := file("empty.key", " \n"), file("two.key", "kt_one\nkt_two\n"), file("bom.key", "\ufeffkt_one\n")
	for _, tt := range []struct {
		name, root, file, flag string
		want                   string // what is presented; "" with a fault
		fault                  string
	}{
		{name: "nothing is named", want: "-"},
		{name: "the root key in the environment", root: "kt_root", want: "Bearer kt_root"},
		{name: "a file in the environment", file: auditor, want: "Bearer kt_auditor"},
		{name: "both in the environment", root: "kt_root", file: auditor, want: "Bearer kt_root"},
		{name: "a flag", flag: auditor, want: "Bearer kt_auditor"},
		{name: "a flag beside the environment", root: "kt_root", flag: auditor, want: "Bearer kt_auditor"},
		{name: "an absent file in the environment", file: absent, fault: "read the operator key: open " + absent},
		{name: "an absent file by flag", flag: absent, fault: "read the operator key: open " + absent},
		{name: "an absent file by flag beside the environment", root: "kt_root", flag: absent, fault: "read the operator key: open " + absent},
		{name: "an empty file", flag: empty, fault: empty + " is empty"},
		{name: "an empty file in the environment", file: empty, fault: empty + " is empty"},
		{name: "a file of two keys", flag: two, fault: "the operator key of " + two + " holds white space"},
		{name: "a file with a byte order mark", flag: bom, fault: "the operator key of " + bom},
		{name: "a key and a line end in the environment", root: "kt_root\r\n", fault: "the operator key of KEYTRAIL_ROOT_KEY holds white space"},
		{name: "two keys in the environment", root: "kt_root kt_auditor", file: auditor, fault: "the operator key of KEYTRAIL_ROOT_KEY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range map[string]string{"KEYTRAIL_ROOT_KEY": tt.root, "KEYTRAIL_KEY_FILE": tt.file} {
				setenv(t, name, value)
			}
			args := []string{"--url", endpoint.URL, "keyspace", "list"}
			if tt.flag != "" {
				args = append(args, "--key-file", tt.flag)
			}
			presented = nil
			var out, errs bytes.Buffer
			code := run(t.Context(), args, nil, &out, &errs)
			got := strings.Join(presented, ",")
			if want := strings.TrimPrefix(tt.want, "-"); got != want || (code == 0) != (tt.fault == "") || !strings.Contains(errs.String(), tt.fault) {
				t.Errorf("exit %d, presented %q, %s; want %q, %q", code, got, errs.String(), want, tt.fault)
			}
		})
	}
}

// TestHelpRepeatsNoSecret: what is no command is refused, and not repeated.
func TestHelpRepeatsNoSecret(t *testing.T) {
	const secret = "sk_live_0123456789012345678901234567"
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"help", secret}, exitUsage, "unknown command"},
		{[]string{"help", "key", secret}, exitUsage, "unknown command"},
		{[]string{"help", "nothing"}, exitUsage, "unknown command"},
		{[]string{"help", "key", "create"}, 0, "keytrail key create"},
		{[]string{"help"}, 0, "Start here:"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), tt.args, nil, &out, &errs)
		if said := out.String() + errs.String(); code != tt.code || !strings.Contains(said, tt.want) || strings.Contains(said, secret) {
			t.Errorf("%q: exit %d, want %d with %q: %s", tt.args, code, tt.code, tt.want, said)
		}
	}
}
