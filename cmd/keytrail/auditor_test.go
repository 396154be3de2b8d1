package main

import (
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/audit"
	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/internal/parts"
)

// As long as ClickHouse has not answered, its metrics are there, and endpoint and
// readiness say why.
func TestAuditorBeforeClickHouseAnswers(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	server, err := ops.Listen("127.0.0.1:0", logger)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{logger: logger, group: &parts.Group{Logger: logger}, server: server}
	au := n.auditor(fixedDSN("clickhouse://keytrail:hunter2@127.0.0.1:1/keytrail"), true)

	families, err := server.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	for _, want := range []string{"keytrail_audit_lag_seconds", "keytrail_audit_lag_messages", "keytrail_audit_restarts_total", "keytrail_audit_trimmed_messages_total"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s does not exist", want)
		}
	}

	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, "ClickHouse has not answered yet"},
		{errors.Join(errors.New("connect"), &audit.Fault{Reason: "ClickHouse has no memory left for this", Later: true}), "ClickHouse has no memory left for this"},
	} {
		if c.err != nil {
			au.waits.Store(&c.err)
		}
		w := httptest.NewRecorder()
		au.ServeHTTP(w, httptest.NewRequest("GET", "/v1/audit/events", nil))
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), c.want+"; nothing is lost") {
			t.Errorf("after %v: %d %s", c.err, w.Code, w.Body)
		}
		if err := au.ready(); err == nil || err.Error() != c.want {
			t.Errorf("after %v: ready says %v, want %q", c.err, err, c.want)
		}
	}
}

// told is the problem as a client reads it.
func told(p *api.Problem) *client.Problem {
	return &client.Problem{Status: p.Status, Code: p.Code, Detail: p.Detail}
}

// The doctor tells a ClickHouse that is down from one that is short of something, and a
// log without room from a key that is not accepted.
func TestAdviceFollowsTheReason(t *testing.T) {
	for reason, want := range map[string]string{
		"ClickHouse cannot be reached":                                      "start ClickHouse",
		"ClickHouse has no memory left for this":                            "ClickHouse runs, and gives this reason",
		"ClickHouse cannot write to its disk: it is full or broken":         "ClickHouse runs, and gives this reason",
		"ClickHouse's user of the DSN lacks a right on the copy's database": "ClickHouse runs, and gives this reason",
	} {
		p := (&audit.Fault{Reason: reason, Later: true}).Problem()
		if got := copyAdvice(told(p)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", reason, got, want)
		}
	}
	for _, code := range []string{"log_not_storing", "log_full"} {
		if got := operatorAdvice(told(api.Errorf(507, code, "the log stores nothing"))); !strings.HasPrefix(got, "make room on the disk") {
			t.Errorf("%s: %q", code, got)
		}
	}
	if got := copyAdvice(told(api.Errorf(503, "copy_stopped", "the copy has stopped"))); !strings.HasPrefix(got, "read in the auditor's log") {
		t.Errorf("a copy that stopped: %q", got)
	}
}
