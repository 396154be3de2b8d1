package main

import (
	"bytes"
	"encoding/csv"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/commands"
)

const someDigest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

// readCell reads a CSV line with one cell beside the digest. refused is the field
// at fault, "" when the line is good.
func readCell(t rapid.TB, column, cell string) (k commands.ImportKey, refused string) {
	t.Helper()
	var text bytes.Buffer
	w := csv.NewWriter(&text)
	w.WriteAll([][]string{{"digest", "tenant", "name", column}, {someDigest, "t1", "ci", cell}})
	lines, err := newImportLines("csv", &text, lineMaker{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := lines.next()
	if err != nil {
		t.Fatal(err)
	}
	if l.body == nil {
		return k, l.errors[0].Field
	}
	if err := json.Unmarshal(l.body, &k, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	return k, ""
}

func listOf(k *commands.ImportKey, column string) (out []string) {
	switch column {
	case "scopes":
		if k.Scopes != nil {
			return *k.Scopes
		}
	case "roles":
		for _, r := range k.Roles {
			out = append(out, string(r))
		}
	case "resources":
		for _, r := range k.Resources {
			out = append(out, r.String())
		}
	case "allowlist":
		return k.Allowlist
	}
	return out
}

// TestBrokenCellsAreRefused: a cell that is not empty never counts as absent.
func TestBrokenCellsAreRefused(t *testing.T) {
	for _, column := range strings.Split("hint, type, environment, scopes, roles, resources, allowlist, expires_at, expires_in, limit.plan, limit.per_minute, limit.burst, metadata.Team, status, revoked_at, revoke_code, reason", ", ") {
		for _, cell := range []string{" ", "\t", "\u00a0", " \n "} {
			if _, refused := readCell(t, column, cell); refused != column {
				t.Errorf("%s: %q is refused at %q, want at the column", column, cell, refused)
			}
		}
	}
	for _, column := range listColumns {
		for _, cell := range []string{" , ", ",", ";", "p/a,,p/b", "p/a,", ";p/a", "p/a, ;p/b", " ,p/a"} {
			if _, refused := readCell(t, column, cell); refused != column {
				t.Errorf("%s: %q is refused at %q, want at the column", column, cell, refused)
			}
		}
		k, refused := readCell(t, column, "")
		if restricts := column == "allowlist" || column == "resources"; len(listOf(&k, column)) != 0 || (refused == column) != restricts {
			t.Errorf("%s: an empty cell reads as %q, refused at %q", column, listOf(&k, column), refused)
		}
		for cell, want := range map[string][]string{"-": {}, "p/a": {"p/a"}, " p/a , p/b;p/c p/d ": {"p/a", "p/b", "p/c", "p/d"}} {
			k, refused := readCell(t, column, cell)
			if got := listOf(&k, column); refused != "" || !slices.Equal(got, want) {
				t.Errorf("%s: %q reads as %q, refused at %q; want %q", column, cell, got, refused, want)
			}
		}
	}
}

// TestEmptyRestrictionsAreRefused: a cell that was lost on its way makes no key that
// works from everywhere, reaches all, or comes alive.
func TestEmptyRestrictionsAreRefused(t *testing.T) {
	for column, value := range map[string]string{"allowlist": "-", "resources": "-", "status": "active"} {
		if _, refused := readCell(t, column, ""); refused != column {
			t.Errorf("%s: an empty cell is refused at %q, want at the column", column, refused)
		}
		if k, refused := readCell(t, column, value); refused != "" || len(k.Allowlist)+len(k.Resources) != 0 {
			t.Errorf("%s: %q is refused at %q, or restricts %+v", column, value, refused, k)
		}
	}
}

// brokenList finds an element with nothing in it.
var brokenList = regexp.MustCompile(`(^|[,;])[\s\p{Z}]*([,;]|$)`)

// TestNoBrokenListWidensAKey: whatever stands in a cell of a list, the list holds
// exactly the elements in it, or the line is refused.
func TestNoBrokenListWidensAKey(t *testing.T) {
	piece := rapid.SampledFrom([]string{" ", ",", ";", "\t", "\u00a0", "\n", "-", "p/a", "p/b", "p/c"})
	split := regexp.MustCompile(`[\s\p{Z},;]+`)
	rapid.Check(t, func(rt *rapid.T) {
		column := rapid.SampledFrom(listColumns).Draw(rt, "column")
		cell := strings.Join(rapid.SliceOfN(piece, 1, 8).Draw(rt, "cell"), "")
		k, refused := readCell(rt, column, cell)
		got := listOf(&k, column)
		switch broken := brokenList.MatchString(cell); {
		case refused != "":
			if !broken && !strings.Contains(cell, "-") {
				rt.Errorf("%s: %q is refused", column, cell)
			}
		case cell == "-":
			if len(got) != 0 {
				rt.Errorf("%s: %q is %q, want the empty list", column, cell, got)
			}
		case broken:
			rt.Errorf("%s: %q is read as %q, want a refusal", column, cell, got)
		default:
			want := slices.DeleteFunc(split.Split(cell, -1), func(s string) bool { return s == "" })
			if !slices.Equal(got, want) || len(got) == 0 {
				rt.Errorf("%s: %q is read as %q, want %q", column, cell, got, want)
			}
		}
	})
}

// TestBlanksInLinesAreRefused: a null or an empty text would take the member's
// default.
func TestBlanksInLinesAreRefused(t *testing.T) {
	for member, fault := range map[string]string{
		`"allowlist":null`:                     "allowlist:invalid",
		`"allowlist":[null]`:                   "allowlist[0]:invalid",
		`"allowlist":[""]`:                     "allowlist[0]:empty",
		`"resources":null`:                     "resources:invalid",
		`"resources":[{"kind":"p","id":null}]`: "resources[0].id:invalid",
		`"resources":[{"kind":"p","id":""}]`:   "resources[0].id:empty",
		`"scopes":null`:                        "scopes:invalid",
		`"roles":null`:                         "roles:invalid",
		`"roles":[""]`:                         "roles[0]:empty",
		`"limit":null`:                         "limit:invalid",
		`"limit":{"plan":null}`:                "limit.plan:invalid",
		`"limit":{"plan":""}`:                  "limit.plan:empty",
		`"expires_in":null`:                    "expires_in:invalid",
		`"expires_in":""`:                      "expires_in:empty",
		`"expires_at":""`:                      "expires_at:empty",
		`"status":""`:                          "status:empty",
		`"revoked_at":""`:                      "revoked_at:empty",
		`"revoke_code":""`:                     "revoke_code:empty",
		`"type":""`:                            "type:empty",
		`"environment":""`:                     "environment:empty",
		`"hint":""`:                            "hint:empty",
		`"metadata":{"expires_at":null}`:       "metadata.expires_at:invalid",
		`"permissions":null`:                   "permissions:invalid",
	} {
		got, err := readLines("jsonl", `{"digest":"`+someDigest+`","tenant":"t","name":"n",`+member+"}", false)
		if err != nil || len(got) != 1 || got[0] != "1!  "+fault {
			t.Errorf("%s: %q, %v; want %s", member, got, err, fault)
		}
	}
	for _, member := range []string{`"reason":""`, `"metadata":{"team":""}`, `"expires_at":null`, `"scopes":[]`} {
		got, err := readLines("jsonl", `{"digest":"`+someDigest+`","tenant":"t","name":"n",`+member+"}", false)
		if err != nil || len(got) != 1 || !strings.HasPrefix(got[0], "1 ") {
			t.Errorf("%s: %q, %v; want it accepted", member, got, err)
		}
	}
}

// TestIntegersGetASentence: 60.0 and 1e2 are no integers, and it is said what is.
func TestIntegersGetASentence(t *testing.T) {
	for _, tt := range []struct{ format, text string }{
		{"csv", "digest,tenant,name,limit.per_minute\n" + someDigest + ",t,n,60.0\n"},
		{"csv", "digest,tenant,name,limit.burst\n" + someDigest + ",t,n,1e2\n"},
		{"jsonl", `{"digest":"` + someDigest + `","tenant":"t","name":"n","limit":{"per_minute":60.0,"burst":6}}`},
		{"jsonl", `{"digest":"` + someDigest + `","tenant":"t","name":"n","limit":{"per_minute":60,"burst":1e2}}`},
	} {
		lines, err := newImportLines(tt.format, strings.NewReader(tt.text), lineMaker{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := lines.next()
		if err != nil || len(l.errors) != 1 || !strings.Contains(l.errors[0].Message, "want an integer without fraction or exponent, as 60") {
			t.Errorf("%s: %v, %v", tt.text, l.errors, err)
		}
	}
}
