package main

import (
	"cmp"
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
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

func (a *app) keyCmd() *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Create, change and read keys", Aliases: []string{"keys"}}
	c.AddCommand(a.keyCreate(), a.keyImport(), a.keyList(), a.keyGet(), a.keyHistory(), a.keyReceipt(), a.keyUpdate(),
		a.keyScopes(), a.keyResources(), a.keyAllowlist(), a.keyLimit(),
		a.keyRotate(), a.keyDisable(), a.keyAct("enable", "End a disablement"), a.keyRevoke())
	return c
}

// keyView is a key as the endpoints show it.
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
	Limit       *keyspace.Limit   `json:"limit"`
	ExpiresAt   string            `json:"expires_at"`
	Metadata    map[string]string `json:"metadata"`
	CreatedAt   string            `json:"created_at"`
	LastUsedAt  jsontext.Value    `json:"last_used_at"` // null = never, absent = not known
	used        string            // what printKey says of it; "" says nothing
	RotatedFrom string            `json:"rotated_from"`
	RotatedTo   string            `json:"rotated_to"`
	RevokedAt   string            `json:"revoked_at"`
	RevokeCode  string            `json:"revoke_code"`
	Rev         uint64            `json:"rev"`
}

// lastUsed says when the key was last used, "" when the answer does not say.
func (k *keyView) lastUsed() string {
	if k.LastUsedAt.Kind() == 'n' {
		return "never"
	}
	return strings.Trim(string(k.LastUsedAt), `"`)
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
	field(w, "last used", k.used)
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

func limitName(l *keyspace.Limit) string {
	switch {
	case l == nil:
		return ""
	case l.Plan != "":
		return "plan " + l.Plan
	}
	return fmt.Sprintf("%d a minute, burst %d", l.PerMinute, l.Burst)
}

// parseResources reads "kind/id" arguments.
func parseResources(args []string) ([]events.Resource, error) {
	out := []events.Resource{}
	for _, s := range args {
		kind, id, ok := strings.Cut(s, "/")
		if !ok {
			return nil, usageError{fmt.Errorf("--resource %s: want kind/id, as project/proj_1", input.Echo(s))}
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
	c.Flags().Int64Var(&l.burst, "burst", 0, "burst: uses that may come together (default: as many as a minute's)")
}

// value returns the limit, nil when no flag was given.
func (l *limitFlags) value() *keyspace.Limit {
	if l.plan == "" && l.perMinute == 0 && l.burst == 0 {
		return nil
	}
	if l.plan == "" && l.burst == 0 {
		l.burst = l.perMinute
	}
	return &keyspace.Limit{Plan: l.plan, PerMinute: l.perMinute, Burst: l.burst}
}

func (a *app) keyCreate() *cobra.Command {
	var keyspace, idem string
	var limit limitFlags
	var resources []string
	in := struct {
		tenant, name, typ, env, expiresAt, expiresIn, reason string
		scopes, roles, allow, permissions                    []string
		permissionLevel                                      string
		noScopes                                             bool
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
			put("scopes", c.Flags().Changed("scope") || in.noScopes, list(in.scopes))
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
	f.BoolVar(&in.noScopes, "no-scopes", false, "no scope at all, where the type has defaults")
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
	c.MarkFlagsMutuallyExclusive("scope", "no-scopes")
	limit.register(c)
	for _, name := range []string{"keyspace", "tenant", "name"} {
		c.MarkFlagRequired(name)
	}
	return c
}

func (a *app) keyList() *cobra.Command {
	var keyspace, tenant, status, name, creator string
	var page pageFlags
	c := &cobra.Command{Use: "list", Short: "List keys, oldest first", Args: none,
		Example: "  keytrail key list --keyspace scribe-sight --tenant acme --status active\n  keytrail key list --created-by key_… --all",
		RunE: func(c *cobra.Command, _ []string) error {
			if keyspace == "" && creator == "" {
				return usageError{fmt.Errorf("want --keyspace, or --created-by for the keys of all keyspaces that one operator key created; see '%s --help'", c.CommandPath())}
			}
			q := page.query(url.Values{})
			set(q, "tenant", tenant)
			set(q, "status", status)
			set(q, "name", name)
			set(q, "created_by", creator)
			path, head := "/v1/keys", "KEYSPACE\t"
			if keyspace != "" {
				path, head = "/v1/keyspaces/"+url.PathEscape(keyspace)+"/keys", ""
			}
			return table(c.Context(), a, "", path, q, page.all,
				head+"KEY\tTENANT\tNAME\tHINT\tSTATUS\tSCOPES\tEXPIRES\tLAST USED", func(k *keyView) string {
					row := cells(k.ID, k.Tenant, k.Name, k.Hint, k.Status, join(k.Scopes), dash(k.ExpiresAt), cmp.Or(k.lastUsed(), "unknown"))
					if head != "" {
						row = cells(k.Keyspace) + "\t" + row
					}
					return row
				})
		}}
	f := c.Flags()
	f.StringVar(&keyspace, "keyspace", "", "the keyspace (default with --created-by: all)")
	f.StringVar(&creator, "created-by", "", "only keys that this operator key created, imported or rotated")
	f.StringVar(&tenant, "tenant", "", "only this tenant's")
	f.StringVar(&status, "status", "", "active, disabled, revoked or expired")
	f.StringVar(&name, "name", "", "only names that contain this")
	page.register(c)
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
			path, err := keyPath(args[0])
			if err != nil {
				return err
			}
			ans, err := a.call(c.Context(), "", http.MethodGet, path, q, nil, nil)
			if err != nil {
				return err
			}
			return show(a, ans, func(w io.Writer, k *keyView) {
				k.used = cmp.Or(k.lastUsed(), "unknown")
				printKey(w, k)
			})
		}}
	c.Flags().StringVar(&asOf, "as-of", "", "RFC 3339 instant: the key as it was then")
	return c
}

// eventView is an event as the endpoints show it.
type eventView struct {
	ID       string         `json:"id"`
	Type     string         `json:"type"`
	Time     string         `json:"time"`
	Keyspace string         `json:"keyspace"`
	Tenant   string         `json:"tenant"`
	KeyID    string         `json:"key_id"`
	Rev      uint64         `json:"rev"`
	Seq      uint64         `json:"seq"`
	Actor    api.ActorView  `json:"actor"`
	IP       string         `json:"ip"`
	Reason   string         `json:"reason"`
	Data     jsontext.Value `json:"data"`
}

const eventHead = "SEQ\tTIME\tTYPE\tTENANT\tKEY\tREV\tACTOR\tIP\tREASON"

func eventRow(e *eventView) string {
	actor := e.Actor.ID
	if e.Actor.Name != "" {
		actor += " (" + e.Actor.Name + ")"
	}
	return cells(fmt.Sprint(e.Seq), e.Time, e.Type, dash(e.Tenant), dash(e.KeyID), fmt.Sprint(e.Rev),
		actor, dash(e.IP), dash(e.Reason))
}

func (a *app) keyHistory() *cobra.Command {
	return &cobra.Command{Use: "history KEY", Short: "Show every event of a key's life, from the log itself", Args: exactly("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keyPath(args[0])
			if err != nil {
				return err
			}
			return table(c.Context(), a, "", path+"/history", url.Values{}, true, eventHead, eventRow)
		}}
}
