package main

import (
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events"
)

// limitLeft says where a limit stands after a decision.
func limitLeft(l *client.LimitState) string {
	if l == nil {
		return ""
	}
	return fmt.Sprintf("%d of %d left for the %s, full again in %d s", l.Remaining, l.Limit, l.Scope, l.Reset)
}

func (a *app) verifyCmd() *cobra.Command {
	var keyspace, scope, resource, ip, scheme, minPosition, maxStaleness string
	var cost uint32
	var secret secretFlag
	c := &cobra.Command{Use: "verify", Short: "Ask whether a key may do something now",
		Long: `Ask a verifier whether a key may do something now. The secret comes from a file,
from standard input or from KEYTRAIL_SECRET, and never from an argument, which every
user of the machine can read. The decision is on the record either way. The exit
code is 0 when allowed and 3 when denied.`,
		Example: "  keytrail verify --keyspace scribe-sight --scope read --resource project/proj_1 --ip 203.0.113.7 --secret-file secret.txt",
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := secret.read(a.in)
			if err != nil {
				return err
			}
			body := map[string]any{"key": key.Reveal()}
			for name, v := range map[string]string{"keyspace": keyspace, "scope": scope, "ip": ip, "scheme": scheme, "min_position": minPosition, "max_staleness": maxStaleness} {
				if v != "" {
					body[name] = v
				}
			}
			if resource != "" {
				rs, err := parseResources([]string{resource})
				if err != nil {
					return err
				}
				body["resource"] = rs[0]
			}
			if cost > 0 {
				body["cost"] = cost
			}
			cl, err := a.client("KEYTRAIL_VERIFY_URL")
			if err != nil {
				return err
			}
			cl.Key = events.Secret{} // this endpoint asks for none, and a verifier need not see it
			var raw jsontext.Value   // printed as it came
			var d client.Decision
			if err := cl.Do(c.Context(), http.MethodPost, "/v1/verify", nil, nil, body, &raw); err != nil {
				return err
			}
			if err := json.Unmarshal(raw, &d); err != nil {
				return fmt.Errorf("the answer is not what this command expects: %w", err)
			}
			if a.json {
				err = a.printJSON(raw)
			} else {
				w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
				verdict := "allowed"
				if !d.Allowed {
					verdict = fmt.Sprintf("denied: %s (%d)", d.Reason, d.Status)
				}
				fmt.Fprintln(w, verdict)
				field(w, "key", d.KeyID)
				field(w, "tenant", d.Tenant)
				field(w, "environment", d.Environment)
				field(w, "scopes", strings.Join(d.Scopes, ", "))
				field(w, "limit", limitLeft(d.Limit))
				if d.RetryAfter > 0 {
					field(w, "try again", fmt.Sprintf("in %d s", d.RetryAfter))
				}
				field(w, "detail", d.Detail)
				field(w, "use", d.UseID)
				err = w.Flush()
			}
			if err == nil && !d.Allowed {
				err = errDenied
			}
			return err
		}}
	secret.register(c)
	f := c.Flags()
	f.StringVar(&keyspace, "keyspace", "", "the keyspace the key must belong to")
	f.StringVar(&scope, "scope", "", "the scope it needs")
	f.StringVar(&resource, "resource", "", "what it wants to reach, as project/proj_1")
	f.StringVar(&ip, "ip", "", "the client's address")
	f.StringVar(&scheme, "scheme", "", "how the client's request came: http or https (default: not asked)")
	f.Uint32Var(&cost, "cost", 0, "tokens to take from the limit (default 1)")
	f.StringVar(&minPosition, "min-position", "", "answer only at this position or later: read your own write")
	f.StringVar(&maxStaleness, "max-staleness", "", "refuse an answer older than this, as 500ms")
	return c
}
