package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// gatewayAdvice says for each fault that a verifier counts what the operator does.
var gatewayAdvice = map[string]string{
	"keyspace":       "correct the keyspace's name in the gateway's configuration, or define the keyspace",
	"scope":          "correct the scope's name in the gateway's configuration, or declare it in the keyspace's document",
	"resource_kind":  "correct the kind of resource in the gateway's configuration, or declare it in the keyspace's document",
	"client_address": "let the trusted proxy set X-Forwarded-For and remove the client's Forwarded; until then keys with an allowlist are refused",
	"malformed":      "correct what the gateway asks for; the verifier's log names the field",
}

// recently is how long ago a gateway's fault is still a finding.
const recently = time.Hour

// gateways tells which faults of gateways' configuration the role has seen.
// Requests are refused because of them, and clients cannot mend them.
func (r *role) gateways(families map[string]*dto.MetricFamily) {
	faults := families["keytrail_verifier_gateway_faults_total"]
	if faults == nil {
		return
	}
	count, last := byFault(faults), byFault(families["keytrail_verifier_gateway_fault_timestamp_seconds"])
	found := false
	for _, fault := range slices.Sorted(maps.Keys(count)) {
		ago := time.Since(time.UnixMilli(int64(last[fault] * 1000)))
		if count[fault] == 0 || ago > recently {
			continue
		}
		found = true
		r.fail("gateways", fmt.Errorf("%.0f questions with the fault %q, the last %s ago", count[fault], strings.ReplaceAll(fault, "_", " "), ago.Round(time.Second)),
			cmp.Or(gatewayAdvice[fault], "look for \"misconfigured\" in the verifier's log"))
	}
	if !found && (r.name == "up" || r.name == "verifier") {
		r.ok("gateways", "none asked for what is not defined in the last hour")
	}
}

// byFault returns the values of a metric by its label fault.
func byFault(f *dto.MetricFamily) map[string]float64 {
	out := map[string]float64{}
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if l.GetName() == "fault" {
				out[l.GetValue()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return out
}
