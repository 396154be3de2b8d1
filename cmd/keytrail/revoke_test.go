package main

import (
	"regexp"
	"strings"
	"testing"
)

// TestRevokeManyKeys: a preview shows and counts, and only what it counted is
// revoked.
func TestRevokeManyKeys(t *testing.T) {
	endpoint := controlEndpoint(t)
	file := writeFile(t, "shop.yaml", "name: shop\nkey_types: [{name: secret, prefix: \"sk_\"}]\n")
	token := ""
	for _, tt := range []struct {
		args string
		code int
		want string // lines of what is printed, as regular expressions
	}{
		{"keyspace apply -f " + file, 0, "^keyspace +shop"},
		{"key create --keyspace shop --tenant t --name a", 0, "^name +a"},
		{"key create --keyspace shop --tenant t --name b", 0, "^name +b"},
		{"key create --keyspace shop --tenant u --name kept", 0, "^name +kept"},
		{"key list --created-by key_01JH2Q0000000000000000R001", 0, "^KEYSPACE +KEY"},
		{"key list --created-by nobody --keyspace shop", exitFailed, "created_by: key id"},
		{"key list", exitUsage, "--created-by"},
		{"key revoke --tenant t", exitUsage, "want --preview"},
		{"key revoke key_x --tenant t --preview", exitUsage, "want either KEY or"},
		{"key revoke --preview", exitUsage, "want --created-by"},
		{"key revoke", exitUsage, "want KEY"},
		{"key revoke --tenant t --preview --confirm 2", exitUsage, "none of the others can be"},
		{"key revoke --tenant t --confirm 2 --if-rev 1", exitUsage, "--if-rev is for one key"},
		{"key revoke --tenant t --preview", 0, `^shop +t +key_\w{26} +a +sk_\w+ +acceptable` + "\n" + `^shop +t +key_\w{26} +b ` + "\n" + `^2 keys would be revoked, nothing was written; to revoke exactly these, give --confirm 2 --token `},
		{"key revoke --tenant t --confirm 3", exitFailed, "2 keys match now, and 3 are confirmed: nothing was revoked"},
		{"key create --keyspace shop --tenant t --name late", 0, "^name +late"},
		{"key revoke --tenant t --confirm 3 --token TOKEN", exitFailed, "told of 2 keys, and 3 are confirmed"},
		{"key revoke --tenant u --confirm 2 --token TOKEN", exitFailed, "this confirms another preview"},
		{"key revoke --tenant t --confirm 2 --token TOKEN --code superseded", 0, `^shop +t +key_\w{26} +a +sk_\w+ +revoked` + "\n^2 of 2 keys revoked"},
		{"key list --keyspace shop --status active", 0, ` kept ` + "\n" + ` late `},
		{"--json key revoke --tenant t --confirm 1", 0, `"status":"revoked"` + "\n" + `"total": 1`},
		{"key revoke --tenant t --preview", 0, "^no key that lives matches"},
	} {
		out, errs, code := cliAt(t, endpoint, "kt_x", strings.Fields(strings.ReplaceAll(tt.args, "TOKEN", token))...)
		if code != tt.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", tt.args, code, tt.code, out, errs)
		}
		for want := range strings.SplitSeq(tt.want, "\n") {
			if !regexp.MustCompile(`(?m)` + want).MatchString(out + errs) {
				t.Errorf("%s: want %s\n%s%s", tt.args, want, out, errs)
			}
		}
		if m := regexp.MustCompile(`--token (\S+)`).FindStringSubmatch(out); m != nil {
			token = m[1]
		}
	}
}
