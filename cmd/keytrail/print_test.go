package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestListsPrintOnePage: with --json a list is one document of one shape, however
// many pages it has, and nothing that the answer says beside its rows is lost.
func TestListsPrintOnePage(t *testing.T) {
	pages := 0 // how many rows there are, one a page
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := 0
		fmt.Sscan(r.URL.Query().Get("cursor"), &n)
		data, next := fmt.Sprintf(`[{"id":"k%d","type":"key.created","definition":{}}]`, n), "null"
		if pages == 0 {
			data = "[]"
		} else if n+1 < pages {
			next = fmt.Sprintf(`"%d"`, n+1)
		}
		fmt.Fprintf(w, `{"data":%s,"next_cursor":%s,"watermark":{"events_seq":7}}`, data, next)
	}))
	defer endpoint.Close()
	type shape struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
		NextCursor *string `json:"next_cursor"`
		Watermark  struct {
			EventsSeq int `json:"events_seq"`
		} `json:"watermark"`
	}
	for _, tt := range []struct {
		args       string
		pages      int
		rows       int
		nextCursor string
	}{
		{"key list --keyspace k", 3, 1, "1"},
		{"key list --keyspace k --all", 3, 3, ""},
		{"key list --keyspace k --cursor 2", 3, 1, ""},
		{"key list --keyspace k --all", 0, 0, ""},
		{"key history key_01ARZ3NDEKTSV4RRFFQ69G5FAV", 3, 3, ""},
		{"keyspace list", 1, 1, ""},
		{"role list --keyspace k --tenant t", 2, 2, ""},
		{"audit events", 2, 1, "1"},
		{"audit events --all", 2, 2, ""},
		{"audit uses", 0, 0, ""},
		{"audit usage", 2, 2, ""},
	} {
		pages = tt.pages
		out, errs, code := cliAt(t, endpoint.URL, "kt_x", append([]string{"--json"}, strings.Fields(tt.args)...)...)
		if code != 0 || errs != "" {
			t.Errorf("%s: exit %d, %s", tt.args, code, errs)
			continue
		}
		var got shape
		unjson(t, out, &got)
		next := ""
		if got.NextCursor != nil {
			next = *got.NextCursor
		}
		if len(got.Data) != tt.rows || next != tt.nextCursor || got.Watermark.EventsSeq != 7 || !strings.Contains(out, `"next_cursor"`) {
			t.Errorf("%s of %d pages:\n%s", tt.args, tt.pages, out)
		}
		for i, row := range got.Data {
			if !strings.Contains(tt.args, "--cursor") && row.ID != fmt.Sprint("k", i) {
				t.Errorf("%s: row %d is %s", tt.args, i, row.ID)
			}
		}
	}
}

// TestListsEnd: a server that answers one page for ever does not hold a command, and a
// command that is interrupted says so.
func TestListsEnd(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"data":[],"next_cursor":"1"}`)
	}))
	defer endpoint.Close()
	for _, args := range []string{"key list --keyspace k --all", "audit events --all"} {
		if out, errs, code := cliAt(t, endpoint.URL, "kt_x", strings.Fields(args)...); code != exitFailed || !strings.Contains(errs, "next_cursor is that of the page before") {
			t.Errorf("%s: exit %d, %s%s", args, code, out, errs)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"--url", endpoint.URL, "key", "list", "--keyspace", "k"}, nil, &out, &errs); code == 0 || !strings.Contains(errs.String(), "interrupted before") {
		t.Errorf("exit %d, %s%s", code, out.String(), errs.String())
	}
}
