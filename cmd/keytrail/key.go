package main

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events"
)

func (a *app) keyCmd() *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Create, change and read keys", Aliases: []string{"keys"}}
	c.AddCommand(a.keyCreate(), a.keyImport(), a.keyList(), a.keyGet(), a.keyHistory(), a.keyUpdate(),
		a.keyScopes(), a.keyResources(), a.keyAllowlist(), a.keyLimit(),
		a.keyRotate(), a.keyAct("disable", "Stop a key until it is enabled again"), a.keyAct("enable", "End a disablement"), a.keyRevoke())
	return c
}

// keyView is a key as the doors show it.
type keyView struct {
	ID          string            `json:"id"`
	Key         string            `json:"key"` // the secret, only in the reply that shows it
	Keyspace    string            `json:"keyspace"`
	Tenant      string            `json:"tenant"`
	Name        string            `json:"name"`
	Hint        string            `json:"hint"`
	Type        string            `json:"type"`
	Environment string            `json:"environment"`
	Status      string            `json:"status"`
	Scopes      []string          `json:"scopes"`
	Roles       []string          `json:"roles"`
	Resources   []events.Resource `json:"resources"`
	Allowlist   []string          `json:"allowlist"`
	Limit       *events.Limit     `json:"limit"`
	ExpiresAt   string            `json:"expires_at"`
	Metadata    map[string]string `json:"metadata"`
	CreatedAt   string            `json:"created_at"`
	LastUsedAt  string            `json:"last_used_at"`
	RotatedFrom string            `json:"rotated_from"`
	RotatedTo   string            `json:"rotated_to"`
	RevokedAt   string            `json:"revoked_at"`
	RevokeCode  string            `json:"revoke_code"`
	Rev         uint64            `json:"rev"`
}

func printKey(w io.Writer, k *keyView) {
	field(w, "key", k.ID)
	field(w, "secret", k.Key)
	field(w, "status", k.Status)
	field(w, "name", k.Name)
	field(w, "keyspace", k.Keyspace)
	field(w, "tenant", k.Tenant)
	field(w, "hint", k.Hint)
	field(w, "type", strings.Trim(k.Type+" "+k.Environment, " "))
	field(w, "scopes", strings.Join(k.Scopes, ", "))
	field(w, "roles", strings.Join(k.Roles, ", "))
	field(w, "resources", strings.Join(resourceNames(k.Resources), ", "))
	field(w, "allowlist", strings.Join(k.Allowlist, ", "))
	field(w, "limit", limitName(k.Limit))
	field(w, "expires", dash(k.ExpiresAt))
	for _, name := range slices.Sorted(maps.Keys(k.Metadata)) {
		field(w, "metadata", name+"="+k.Metadata[name])
	}
	field(w, "created", k.CreatedAt)
	field(w, "last used", k.LastUsedAt)
	field(w, "rotated from", k.RotatedFrom)
	field(w, "rotated to", k.RotatedTo)
	field(w, "revoked", strings.Trim(k.RevokedAt+" "+k.RevokeCode, " "))
	field(w, "rev", fmt.Sprint(k.Rev))
	if k.Key != "" {
		fmt.Fprintln(w, "\nThe secret is shown this once; only its SHA-256 is kept.")
	}
}

func resourceNames(rs []events.Resource) []string {
	out := make([]string, len(rs))
	for i, r := range rs {
		out[i] = r.String()
	}
	return out
}

func limitName(l *events.Limit) string {
	switch {
	case l == nil:
		return ""
	case l.Plan != "":
		return "plan " + l.Plan
	}
	return fmt.Sprintf("%d a minute, %d at once", l.PerMinute, l.Burst)
}

// parseResources reads "kind/id" arguments.
func parseResources(args []string) ([]events.Resource, error) {
	out := []events.Resource{}
	for _, s := range args {
		kind, id, ok := strings.Cut(s, "/")
		if !ok {
			return nil, usageError{fmt.Errorf("--resource %q: want kind/id, as project/proj_1", s)}
		}
		out = append(out, events.Resource{Kind: kind, ID: id})
	}
	return out, nil
}

// limitFlags are the flags that say a limit.
type limitFlags struct {
	plan             string
	perMinute, burst int64
}

func (l *limitFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&l.plan, "plan", "", "a plan of the keyspace")
	c.Flags().Int64Var(&l.perMinute, "per-minute", 0, "uses a minute")
	c.Flags().Int64Var(&l.burst, "burst", 0, "uses at once (default: as many as a minute's)")
}

// value returns the limit, nil when no flag was given.
func (l *limitFlags) value() *events.Limit {
	if l.plan == "" && l.perMinute == 0 && l.burst == 0 {
		return nil
	}
	if l.plan == "" && l.burst == 0 {
		l.burst = l.perMinute
	}
	return &events.Limit{Plan: l.plan, PerMinute: l.perMinute, Burst: l.burst}
}

func (a *app) keyCreate() *cobra.Command {
	var keyspace, idem string
	var limit limitFlags
	var resources []string
	in := struct {
		tenant, name, typ, env, expiresAt, expiresIn, reason string
		scopes, roles, allow, permissions                    []string
		permissionLevel                                      string
		metadata                                             map[string]string
	}{}
	c := &cobra.Command{Use: "create", Short: "Create a key and show its secret, this once", Args: none,
		Example: "  keytrail key create --keyspace scribe-sight --tenant acme --name 'CI/CD Pipeline' \\\n    --scope read --scope write --resource project/proj_1 --allow 203.0.113.0/24 --expires-in 30d",
		RunE: func(c *cobra.Command, _ []string) error {
			rs, err := parseResources(resources)
			if err != nil {
				return err
			}
			body := map[string]any{"tenant": in.tenant, "name": in.name}
			put := func(name string, given bool, v any) {
				if given {
					body[name] = v
				}
			}
			put("type", in.typ != "", in.typ)
			put("environment", in.env != "", in.env)
			put("scopes", c.Flags().Changed("scope"), in.scopes)
			put("roles", len(in.roles) > 0, in.roles)
			permissions := map[string]any{"scopes": in.permissions}
			if in.permissionLevel != "" {
				permissions["level"] = in.permissionLevel
			}
			put("permissions", len(in.permissions) > 0, permissions)
			if in.permissionLevel != "" && len(in.permissions) == 0 {
				return usageError{fmt.Errorf("--permission-level says at which level --permission holds: give that as well")}
			}
			put("resources", len(rs) > 0, rs)
			put("allowlist", len(in.allow) > 0, in.allow)
			put("expires_at", in.expiresAt != "", in.expiresAt)
			put("expires_in", in.expiresIn != "", in.expiresIn)
			put("limit", limit.value() != nil, limit.value())
			put("metadata", len(in.metadata) > 0, in.metadata)
			put("reason", in.reason != "", in.reason)
			h := http.Header{}
			if idem != "" {
				h.Set("Idempotency-Key", idem)
			}
			ans, err := a.call(c.Context(), "", http.MethodPost, "/v1/keyspaces/"+url.PathEscape(keyspace)+"/keys", nil, h, body)
			if err != nil {
				return err
			}
			return show(a, ans, printKey)
		}}
	f := c.Flags()
	f.StringVar(&keyspace, "keyspace", "", "the keyspace")
	f.StringVar(&in.tenant, "tenant", "", "the customer the key belongs to")
	f.StringVar(&in.name, "name", "", "what people call it")
	f.StringVar(&in.typ, "type", "", "key type (default: the keyspace's first)")
	f.StringVar(&in.env, "environment", "", "environment, where the type leaves it open")
	f.StringSliceVar(&in.scopes, "scope", nil, "a scope; repeat, or separate with commas (default: the type's)")
	f.StringSliceVar(&in.roles, "role", nil, "a role of the tenant")
	f.StringSliceVar(&in.permissions, "permission", nil, "a scope of a role of the key's own, which is made with it")
	f.StringVar(&in.permissionLevel, "permission-level", "", "level of that role: tenant (default) or a resource kind")
	f.StringSliceVar(&resources, "resource", nil, "restrict to kind/id, as project/proj_1 (default: the whole tenant)")
	f.StringSliceVar(&in.allow, "allow", nil, "address or CIDR it may be used from (default: any)")
	f.StringVar(&in.expiresAt, "expires-at", "", "RFC 3339 instant")
	f.StringVar(&in.expiresIn, "expires-in", "", "life from now, as 720h or 30d, or never; where the keyspace has choices, one of them")
	f.StringToStringVar(&in.metadata, "metadata", nil, "name=value")
	f.StringVar(&in.reason, "reason", "", "why, for the record")
	f.StringVar(&idem, "idempotency-key", "", "makes a retry safe: the same key is answered again, without its secret")
	limit.register(c)
	for _, name := range []string{"keyspace", "tenant", "name"} {
		c.MarkFlagRequired(name)
	}
	return c
}

func (a *app) keyList() *cobra.Command {
	var keyspace, tenant, status, name string
	var page pageFlags
	c := &cobra.Command{Use: "list", Short: "List keys, oldest first", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			q := page.query(url.Values{})
			set(q, "tenant", tenant)
			set(q, "status", status)
			set(q, "name", name)
			return table(c.Context(), a, "", "/v1/keyspaces/"+url.PathEscape(keyspace)+"/keys", q, page.all,
				"KEY\tTENANT\tNAME\tHINT\tSTATUS\tSCOPES\tEXPIRES\tLAST USED", func(k *keyView) string {
					return strings.Join([]string{k.ID, k.Tenant, k.Name, k.Hint, k.Status, join(k.Scopes), dash(k.ExpiresAt), dash(k.LastUsedAt)}, "\t")
				})
		}}
	f := c.Flags()
	f.StringVar(&keyspace, "keyspace", "", "the keyspace")
	f.StringVar(&tenant, "tenant", "", "only this tenant's")
	f.StringVar(&status, "status", "", "active, disabled, revoked or expired")
	f.StringVar(&name, "name", "", "only names that contain this")
	page.register(c)
	c.MarkFlagRequired("keyspace")
	return c
}

func (p *pageFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.IntVar(&p.limit, "limit", 0, "rows a page, at most 100")
	f.StringVar(&p.cursor, "cursor", "", "next_cursor of the page before")
	f.BoolVar(&p.all, "all", false, "follow the pages to the end")
}

func (a *app) keyGet() *cobra.Command {
	var asOf string
	c := &cobra.Command{Use: "get KEY", Short: "Show one key, now or as it was", Args: exactly("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{}
			set(q, "as_of", asOf)
			ans, err := a.call(c.Context(), "", http.MethodGet, "/v1/keys/"+url.PathEscape(args[0]), q, nil, nil)
			if err != nil {
				return err
			}
			return show(a, ans, printKey)
		}}
	c.Flags().StringVar(&asOf, "as-of", "", "RFC 3339 instant: the key as it was then")
	return c
}

// eventView is an event as the doors show it.
type eventView struct {
	ID       string         `json:"id"`
	Type     string         `json:"type"`
	Time     string         `json:"time"`
	Keyspace string         `json:"keyspace"`
	Tenant   string         `json:"tenant"`
	KeyID    string         `json:"key_id"`
	Rev      uint64         `json:"rev"`
	Seq      uint64         `json:"seq"`
	Actor    events.Actor   `json:"actor"`
	IP       string         `json:"ip"`
	Reason   string         `json:"reason"`
	Data     jsontext.Value `json:"data"`
}

const eventHead = "SEQ\tTIME\tTYPE\tTENANT\tKEY\tREV\tACTOR\tIP\tREASON"

func eventRow(e *eventView) string {
	return strings.Join([]string{fmt.Sprint(e.Seq), e.Time, e.Type, dash(e.Tenant), dash(e.KeyID), fmt.Sprint(e.Rev),
		e.Actor.ID, dash(e.IP), dash(e.Reason)}, "\t")
}

func (a *app) keyHistory() *cobra.Command {
	return &cobra.Command{Use: "history KEY", Short: "Show every event of a key's life, from the log itself", Args: exactly("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			return table(c.Context(), a, "", "/v1/keys/"+url.PathEscape(args[0])+"/history", url.Values{}, true, eventHead, eventRow)
		}}
}

// write sends one change of a key and shows the key.
func (a *app) write(c *cobra.Command, method, path string, body map[string]any) error {
	if reason, _ := c.Flags().GetString("reason"); reason != "" {
		body["reason"] = reason
	}
	ans, err := a.call(c.Context(), "", method, path, nil, nil, body)
	if err != nil {
		return err
	}
	return show(a, ans, printKey)
}

// change makes a subcommand that writes to one key.
func (a *app) change(use, short, example, method, suffix string, body func(c *cobra.Command) (map[string]any, error)) *cobra.Command {
	c := &cobra.Command{Use: use + " KEY", Short: short, Example: example, Args: exactly("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := body(c)
			if err != nil {
				return err
			}
			return a.write(c, method, "/v1/keys/"+url.PathEscape(args[0])+suffix, b)
		}}
	c.Flags().String("reason", "", "why, for the record")
	return c
}

func (a *app) keyUpdate() *cobra.Command {
	var name, at, in string
	var never bool
	var metadata map[string]string
	c := a.change("update", "Rename a key, or move its expiry", "  keytrail key update key_… --name ci-pipeline --expires-in 90d", http.MethodPatch, "",
		func(c *cobra.Command) (map[string]any, error) {
			b := map[string]any{}
			if c.Flags().Changed("name") {
				b["name"] = name
			}
			if c.Flags().Changed("metadata") {
				b["metadata"] = metadata
			}
			if at != "" {
				b["expires_at"] = at
			}
			if in != "" {
				b["expires_in"] = in
			}
			if never {
				b["expires_at"] = nil
			}
			if len(b) == 0 {
				return nil, usageError{fmt.Errorf("nothing to change: want --name, --metadata, --expires-at, --expires-in or --never-expires")}
			}
			return b, nil
		})
	c.Flags().StringVar(&name, "name", "", "the new name")
	c.Flags().StringToStringVar(&metadata, "metadata", nil, "name=value; replaces all metadata")
	c.Flags().StringVar(&at, "expires-at", "", "RFC 3339 instant")
	c.Flags().StringVar(&in, "expires-in", "", "life from now, as 720h or 30d")
	c.Flags().BoolVar(&never, "never-expires", false, "take the expiry away")
	c.MarkFlagsMutuallyExclusive("expires-at", "expires-in", "never-expires")
	return c
}

// either insists that a list is given or lifted by name: a forgotten flag must
// not make a key more powerful.
func either(c *cobra.Command, given bool, flag string, lift bool, lifting string) error {
	if given == lift {
		return usageError{fmt.Errorf("want either --%s or --%s; see '%s --help'", flag, lifting, c.CommandPath())}
	}
	return nil
}

func (a *app) keyScopes() *cobra.Command {
	var scopes, roles []string
	var none bool
	c := a.change("scopes", "Replace a key's scopes, its roles, or both", "  keytrail key scopes key_… --scope read\n  keytrail key scopes key_… --none", http.MethodPut, "/scopes",
		func(c *cobra.Command) (map[string]any, error) {
			b := map[string]any{}
			if none || c.Flags().Changed("scope") {
				b["scopes"] = list(scopes)
			}
			if none || c.Flags().Changed("role") {
				b["roles"] = list(roles)
			}
			return b, either(c, len(scopes)+len(roles) > 0, "scope or --role", none, "none")
		})
	c.Flags().StringSliceVar(&scopes, "scope", nil, "a scope; what is not named is taken away")
	c.Flags().StringSliceVar(&roles, "role", nil, "a role of the tenant; without it the roles stay")
	c.Flags().BoolVar(&none, "none", false, "take all scopes and roles away")
	return c
}

func (a *app) keyResources() *cobra.Command {
	var resources []string
	var all bool
	c := a.change("resources", "Replace what a key is restricted to", "  keytrail key resources key_… --resource project/proj_2", http.MethodPut, "/resources",
		func(c *cobra.Command) (map[string]any, error) {
			if err := either(c, len(resources) > 0, "resource", all, "whole-tenant"); err != nil {
				return nil, err
			}
			rs, err := parseResources(resources)
			return map[string]any{"resources": rs}, err
		})
	c.Flags().StringSliceVar(&resources, "resource", nil, "kind/id, as project/proj_1")
	c.Flags().BoolVar(&all, "whole-tenant", false, "lift the restriction")
	return c
}

func (a *app) keyAllowlist() *cobra.Command {
	var allow []string
	var anywhere bool
	c := a.change("allowlist", "Replace the networks a key may be used from", "  keytrail key allowlist key_… --allow 203.0.113.0/24 --allow 2001:db8::/32", http.MethodPut, "/allowlist",
		func(c *cobra.Command) (map[string]any, error) {
			return map[string]any{"allowlist": list(allow)}, either(c, len(allow) > 0, "allow", anywhere, "any")
		})
	c.Flags().StringSliceVar(&allow, "allow", nil, "address or CIDR")
	c.Flags().BoolVar(&anywhere, "any", false, "lift the allowlist: any address")
	return c
}

func (a *app) keyLimit() *cobra.Command {
	var limit limitFlags
	var def bool
	c := a.change("limit", "Replace a key's rate limit", "  keytrail key limit key_… --per-minute 60 --burst 120", http.MethodPut, "/limit",
		func(c *cobra.Command) (map[string]any, error) {
			return map[string]any{"limit": limit.value()}, either(c, limit.value() != nil, "plan or --per-minute", def, "default")
		})
	limit.register(c)
	c.Flags().BoolVar(&def, "default", false, "the keyspace's own limit, if it has one")
	return c
}

func (a *app) keyRotate() *cobra.Command {
	var overlap, at, in string
	c := a.change("rotate", "Issue a successor; the old key lives on for the overlap, never past its own expiry",
		"  keytrail key rotate key_… --overlap 24h", http.MethodPost, "/rotate",
		func(*cobra.Command) (map[string]any, error) {
			b := map[string]any{}
			if overlap != "" {
				b["overlap"] = overlap
			}
			if at != "" {
				b["expires_at"] = at
			}
			if in != "" {
				b["expires_in"] = in
			}
			return b, nil
		})
	c.Flags().StringVar(&overlap, "overlap", "", "how long the old key goes on, as 24h or 7d (default: it ends at once)")
	c.Flags().StringVar(&at, "expires-at", "", "the successor's expiry, RFC 3339")
	c.Flags().StringVar(&in, "expires-in", "", "the successor's life, as 720h or 30d, or never")
	return c
}

func (a *app) keyAct(verb, short string) *cobra.Command {
	return a.change(verb, short, "", http.MethodPost, "/"+verb, func(*cobra.Command) (map[string]any, error) { return map[string]any{}, nil })
}

func (a *app) keyRevoke() *cobra.Command {
	var code string
	c := a.change("revoke", "End a key's life for good", "  keytrail key revoke key_… --code key_compromise --reason 'seen in a public repository'", http.MethodDelete, "",
		func(*cobra.Command) (map[string]any, error) { return map[string]any{"code": code}, nil })
	c.Flags().StringVar(&code, "code", string(events.RevokeUnspecified), "unspecified, key_compromise, affiliation_changed, superseded, cessation_of_operation or privilege_withdrawn")
	return c
}

// list makes an absent list an empty one, so that it replaces.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
