package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events"
)

func (a *app) verifyCmd() *cobra.Command {
	var keyspace, scope, resource, ip, scheme, minPosition, maxStaleness string
	var cost uint32
	c := &cobra.Command{Use: "verify [SECRET]", Short: "Ask whether a key may do something now",
		Long: `Ask a verifier whether a key may do something now. The secret comes from the
argument, from KEYTRAIL_SECRET, or, with -, from standard input; the last two keep
it out of the process list. The decision is on the record either way. The exit
code is 0 when allowed and 3 when denied.`,
		Example: "  keytrail verify --keyspace scribe-sight --scope read --resource project/proj_1 --ip 203.0.113.7 - < secret.txt",
		Args:    atMost("one SECRET"),
		RunE: func(c *cobra.Command, args []string) error {
			secret := os.Getenv("KEYTRAIL_SECRET")
			if len(args) == 1 {
				secret = args[0]
			}
			if secret == "-" {
				b, err := io.ReadAll(io.LimitReader(a.in, 4096))
				if err != nil {
					return fmt.Errorf("read the secret: %w", err)
				}
				secret = strings.TrimSpace(string(b))
			}
			body := map[string]any{"key": secret}
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
			cl.Key = events.Secret{} // this door asks for none, and a verifier need not see it
			var d struct {
				Allowed     bool           `json:"allowed"`
				Reason      string         `json:"reason"`
				Status      int            `json:"status"`
				KeyID       string         `json:"key_id"`
				Tenant      string         `json:"tenant"`
				Environment string         `json:"environment"`
				Scopes      []string       `json:"scopes"`
				Limit       jsontext.Value `json:"limit,omitzero"`
				Position    string         `json:"position"`
				UseID       string         `json:"use_id"`
			}
			if err := cl.Do(c.Context(), http.MethodPost, "/v1/verify", nil, nil, body, &d); err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(d)
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
				if len(d.Limit) > 0 && d.Limit.Kind() == '{' {
					field(w, "limit", string(d.Limit))
				}
				field(w, "use", d.UseID)
				err = w.Flush()
			}
			if err == nil && !d.Allowed {
				err = errDenied
			}
			return err
		}}
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
