package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events/input"
)

// role is one process of a deployment, as it shows itself over HTTP.
type role struct {
	*doctor
	client client.Client // without a key: probes and metrics ask for none
	set    string        // what names its URL
	name   string        // up, control, verifier or auditor, once known
}

// check asks everything that the role tells without a key, and reports whether it
// answers.
func (r *role) check(ctx context.Context) bool {
	sent := time.Now()
	resp, err := r.client.Send(ctx, http.MethodGet, "/healthz", nil, nil, nil)
	if err != nil {
		r.fail("endpoint", fmt.Errorf("nothing answers at %s", r.client.Base), "start it, or correct "+r.set)
		return false
	}
	defer resp.Body.Close()
	var state struct {
		Role string `json:"role"`
	}
	if err := json.UnmarshalRead(resp.Body, &state); err != nil || state.Role == "" {
		r.fail("endpoint", fmt.Errorf("%s is not Keytrail", r.client.Base), "correct "+r.set)
		return false
	}
	r.name = state.Role
	r.ok("endpoint", r.client.Base+", role "+r.name)
	r.clock(resp.Header.Get("Date"), sent, time.Now())
	r.ready(ctx)
	r.metrics(ctx)
	return true
}

// clock compares the role's clock with the one here. The role dated its answer at some
// time between the question and the answer, and an answer may take long. The header has
// whole seconds.
func (r *role) clock(date string, sent, answered time.Time) {
	at, err := http.ParseTime(date)
	if err != nil {
		return
	}
	skew := min(at.Sub(sent.Truncate(time.Second)), 0) + max(at.Sub(answered.Truncate(time.Second)), 0)
	if skew.Abs() > 2*time.Second {
		r.fail("clock", fmt.Errorf("the clock of %s differs by %s from the one here", r.client.Base, skew.Round(time.Second)),
			"synchronise the clocks of both hosts (chrony, systemd-timesyncd): each verifier judges expiry by its own")
	} else {
		r.ok("clock", "within two seconds of the one here")
	}
}

// partAdvice says what helps when a part of a role is not ready, by its name in
// /readyz.
var partAdvice = map[string]string{
	"verifier": "wait while it applies the log after a start; otherwise check that the log's servers run and that this host reaches them",
	"audit":    "start ClickHouse, or correct KEYTRAIL_CLICKHOUSE of this role; if the copy has stopped, its log says why",
	"log": "make room on the disk of the log's server (of --dir, if this is `keytrail up`), then restart that server, which writes nothing before; " +
		"if a stream has reached its size limit, raise it (runbook: The disk is full). Keys are verified meanwhile",
	"checkpoints": "if it says fork: sign nothing until you know which history is right (runbook: Checkpoints have stopped). Otherwise give every control the checkpoint key file that signed last, " +
		"or wait while it reads the log; keys are verified and changed meanwhile",
	"log disk": "make room on the disk of --dir before it is full",
	"clock":    "synchronise the clocks of this host and of the control role's (chrony, systemd-timesyncd)",
}

func (r *role) ready(ctx context.Context) {
	var state struct {
		Warnings input.FieldErrors `json:"warnings"`
	}
	err := r.client.Do(ctx, http.MethodGet, "/readyz", nil, nil, nil, &state)
	p := new(client.Problem)
	switch {
	case err == nil && len(state.Warnings) == 0:
		r.ok("ready", r.name)
	case err == nil:
		r.parts(state.Warnings)
	case errors.As(err, &p) && len(p.Errors) > 0:
		r.parts(p.Errors)
	default:
		r.fail("ready", err, "see this role's own log")
	}
}

// parts reports the fault of each part of a role.
func (r *role) parts(parts input.FieldErrors) {
	for _, part := range parts {
		r.fail("ready", fmt.Errorf("%s: %s", part.Field, part.Message), cmp.Or(partAdvice[part.Field], "see this role's own log"))
	}
}

// metricRule judges one metric of a role.
type metricRule struct {
	metric, check string
	above         float64 // it is bad above this, and below the negative of it
	text          string  // {n} is the value, another name in braces that label's value
	do            string  // "": it happened and is over, which is a note
}

var metricRules = []metricRule{
	{"keytrail_verifier_ledger_lost_total", "uses", 0, "{n} uses were counted and lost since this process started; the gap is on the record", ""},
	{"keytrail_verifier_ledger_gaps_total", "uses", 0, "{n} gaps were recorded since this process started: uses were lost, mostly with a process that was killed", ""},
	{"keytrail_verifier_ledger_buffered", "uses", 100_000, "{n} uses wait in memory for the log; when the buffer is full they are lost", "find out why the log takes no uses (runbook: Uses were lost)"},
	{"keytrail_snapshot_failures_total", "snapshots", 0, "{n} snapshots could not be saved since this process started, so its next start is slower: make room in its --dir", ""},
	{"keytrail_log_stream_used_percent", "log", 80, "stream {stream} uses {n} % of its limit; at 90 % KT_LIFE takes only what takes power away", "raise its limit with `keytrail log grow` (runbook: A stream fills up)"},
	{"keytrail_log_stream_consumers_percent", "log", 80, "stream {stream} has {n} % of the consumers that the server admits; Keytrail makes one or none", "remove the consumers that others made (runbook: A stream fills up)"},
	{"keytrail_log_node_limited_total", "nodes", 0, "node {node} asked more of the log than it may, {n} times since this process started (limit: {limit})",
		"if that node has no such load, its credential was stolen: revoke it (runbook: A node floods the log)"},
	{"keytrail_audit_lag_seconds", "copy", 10, "the copy of the {source} is {n} s behind the log", "start ClickHouse; if it runs, the auditor's log says why it takes nothing. Nothing is lost within seven days"},
	{"keytrail_audit_node_clock_offset_seconds", "clock", 2, "node {node} dates its uses {n} s after the log's clock (before it, if negative)",
		"synchronise the clocks of that node's host and of the log's servers; if they agree, the node's uses reach the log late: see its log"},
	{"keytrail_audit_trimmed_messages_total", "copy", 0, "{n} messages of uses left the stream before they were copied: they are lost, and the gap is on the record", ""},
	{"keytrail_audit_quarantined_messages_total", "copy", 0, "{n} messages of the use stream are no batch of their node and were set aside",
		"upgrade the auditor if a node is of a newer release; if none is, somebody else has a verifier's password: change it. doctor --deep lists the messages"},
}

func (rule *metricRule) found(v float64, labels []*dto.LabelPair) string {
	pairs := []string{"{n}", strconv.FormatFloat(v, 'f', 0, 64)}
	for _, l := range labels {
		pairs = append(pairs, "{"+l.GetName()+"}", l.GetValue())
	}
	return strings.NewReplacer(pairs...).Replace(rule.text)
}

// metrics reads the role's metrics and judges those that metricRules names.
func (r *role) metrics(ctx context.Context) {
	resp, err := r.client.Send(ctx, http.MethodGet, "/metrics", nil, nil, nil)
	if err != nil {
		r.fail("metrics", err, "see this role's own log")
		return
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		r.fail("metrics", err, "is this Keytrail? correct "+r.set)
		return
	}
	r.gateways(families)
	for _, rule := range metricRules {
		for _, m := range families[rule.metric].GetMetric() {
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
			if math.Abs(v) <= rule.above {
				continue
			}
			found := r.client.Base + ": " + rule.found(v, m.GetLabel())
			if rule.do == "" {
				r.note(rule.check, found)
			} else {
				r.fail(rule.check, errors.New(found), rule.do)
			}
		}
	}
}
