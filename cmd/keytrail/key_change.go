package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events"
)

// write sends one change of a key and shows the key. With --wait the first request
// waits for most at the longest.
func (a *app) write(c *cobra.Command, method, path string, header http.Header, body map[string]any, most time.Duration) error {
	if reason, _ := c.Flags().GetString("reason"); reason != "" {
		body["reason"] = reason
	}
	wait, err := readWait(c)
	if err != nil {
		return err
	}
	ans, err := a.call(c.Context(), "", method, path, wait.query(most), header, body)
	if err != nil {
		return err
	}
	return a.told(c.Context(), wait, ans, func() error { return show(a, ans, printKey) })
}

// change makes a subcommand that writes to one key.
func (a *app) change(use, short, example, method, suffix string, body func(c *cobra.Command) (map[string]any, error)) *cobra.Command {
	c := &cobra.Command{Use: use + " KEY", Short: short, Example: example, Args: exactly("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := keyPath(args[0])
			if err != nil {
				return err
			}
			b, err := body(c)
			if err != nil {
				return err
			}
			header, err := ifRev(c)
			if err != nil {
				return err
			}
			most := waitMost
			if suffix == "/rotate" {
				most = time.Second // its answer has a secret, which must not get lost in a wait
			}
			return a.write(c, method, path+suffix, header, b, most)
		}}
	c.Flags().String("reason", "", "why, for the record")
	addIfRev(c, zeroIsNone)
	return c
}

func (a *app) keyUpdate() *cobra.Command {
	var name, at, in string
	var never, noMetadata bool
	var metadata map[string]string
	c := a.change("update", "Rename a key, or move its expiry", "  keytrail key update key_… --name ci-pipeline --expires-in 90d", http.MethodPatch, "",
		func(c *cobra.Command) (map[string]any, error) {
			b := map[string]any{}
			if c.Flags().Changed("name") {
				b["name"] = name
			}
			if c.Flags().Changed("metadata") || noMetadata {
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
				return nil, usageError{fmt.Errorf("nothing to change: want --name, --metadata, --no-metadata, --expires-at, --expires-in or --never-expires")}
			}
			return b, nil
		})
	c.Flags().StringVar(&name, "name", "", "the new name")
	c.Flags().StringToStringVar(&metadata, "metadata", nil, "name=value; replaces all metadata")
	c.Flags().BoolVar(&noMetadata, "no-metadata", false, "take all metadata away")
	c.Flags().StringVar(&at, "expires-at", "", "RFC 3339 instant")
	c.Flags().StringVar(&in, "expires-in", "", "life from now, as 720h or 30d")
	c.Flags().BoolVar(&never, "never-expires", false, "take the expiry away")
	c.MarkFlagsMutuallyExclusive("expires-at", "expires-in", "never-expires")
	c.MarkFlagsMutuallyExclusive("metadata", "no-metadata")
	return addWait(c)
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
	return addWait(c)
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
	return addWait(c)
}

func (a *app) keyAllowlist() *cobra.Command {
	var allow []string
	var anywhere bool
	var edit editFlags
	c := a.change("allowlist", "Replace the networks a key may be used from, or edit them",
		"  keytrail key allowlist key_… --allow 203.0.113.0/24 --allow 2001:db8::/32\n  keytrail key allowlist key_… --add 198.51.100.7", http.MethodPut, "/allowlist",
		func(c *cobra.Command) (map[string]any, error) {
			return map[string]any{"allowlist": list(allow)}, either(c, len(allow) > 0, "allow", anywhere, "any")
		})
	c.Flags().StringSliceVar(&allow, "allow", nil, "address or CIDR")
	c.Flags().BoolVar(&anywhere, "any", false, "lift the allowlist: any address")
	edit.register(c, "address or CIDR")
	for _, replaces := range []string{"allow", "any"} {
		c.MarkFlagsMutuallyExclusive(replaces, "add")
		c.MarkFlagsMutuallyExclusive(replaces, "remove")
	}
	replace := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if edit.given() {
			return a.editAllowlist(c, args[0], &edit)
		}
		return replace(c, args)
	}
	return addWait(c)
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
	return addWait(c)
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
	return addWait(c)
}

func (a *app) keyAct(verb, short string) *cobra.Command {
	return a.change(verb, short, "", http.MethodPost, "/"+verb, func(*cobra.Command) (map[string]any, error) { return map[string]any{}, nil })
}

func (a *app) keyDisable() *cobra.Command {
	return addWait(a.keyAct("disable", "Stop a key until it is enabled again"))
}

func (a *app) keyRevoke() *cobra.Command {
	var code string
	c := a.change("revoke", "End a key's life for good, or those of all keys that one operator key created", `  keytrail key revoke key_… --code key_compromise --reason 'seen in a public repository'
  keytrail key revoke --created-by key_… --preview
  keytrail key revoke --created-by key_… --confirm 37 --code key_compromise --reason 'a laptop was stolen'`, http.MethodDelete, "",
		func(*cobra.Command) (map[string]any, error) { return map[string]any{"code": code}, nil })
	addWait(c)
	a.revokeMany(c, &code)
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
