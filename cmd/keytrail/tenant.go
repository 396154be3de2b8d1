package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events/keyspace"
)

// tenantView is what holds for a tenant as a whole, as the endpoint shows it.
type tenantView struct {
	ID        string          `json:"id"`
	Keyspace  string          `json:"keyspace"`
	Limit     *keyspace.Limit `json:"limit"`
	Effective *struct {
		Plan      string `json:"plan"`
		PerMinute int64  `json:"per_minute"`
		Burst     int64  `json:"burst"`
	} `json:"effective"`
	Rev       uint64 `json:"rev"`
	UpdatedAt string `json:"updated_at"`
}

func printTenant(w io.Writer, t *tenantView) {
	field(w, "tenant", t.ID)
	field(w, "keyspace", t.Keyspace)
	own := limitName(t.Limit)
	if own == "" {
		own = "none of its own"
	}
	field(w, "limit", own)
	holds := "unlimited"
	if e := t.Effective; e != nil {
		holds = limitName(&keyspace.Limit{PerMinute: e.PerMinute, Burst: e.Burst})
		if e.Plan != "" {
			holds += ", plan " + e.Plan
		}
	}
	field(w, "all its keys", holds)
	field(w, "rev", fmt.Sprint(t.Rev))
	field(w, "updated", t.UpdatedAt)
}

func (a *app) tenantCmd() *cobra.Command {
	var keyspace string
	c := &cobra.Command{Use: "tenant", Short: "Set and read what holds for a tenant as a whole", Aliases: []string{"tenants"}}
	c.PersistentFlags().StringVar(&keyspace, "keyspace", "", "the keyspace")
	c.MarkPersistentFlagRequired("keyspace")
	path := func(tenant string) string {
		return "/v1/keyspaces/" + url.PathEscape(keyspace) + "/tenants/" + url.PathEscape(tenant)
	}
	get := &cobra.Command{Use: "get TENANT", Short: "Show the limit of all keys of a tenant together", Args: exactly("TENANT"),
		RunE: func(c *cobra.Command, args []string) error {
			ans, err := a.call(c.Context(), "", http.MethodGet, path(args[0]), nil, nil, nil)
			if err != nil {
				return err
			}
			return show(a, ans, printTenant)
		}}
	var limit limitFlags
	var def bool
	var reason string
	set := &cobra.Command{Use: "limit TENANT", Short: "Replace the limit of all keys of a tenant together", Args: exactly("TENANT"),
		Example: "  keytrail tenant limit acme --keyspace lattica --plan team",
		RunE: func(c *cobra.Command, args []string) error {
			if err := either(c, limit.value() != nil, "plan or --per-minute", def, "default"); err != nil {
				return err
			}
			body := map[string]any{"limit": limit.value()}
			if reason != "" {
				body["reason"] = reason
			}
			header, err := ifRev(c)
			if err != nil {
				return err
			}
			wait, err := readWait(c)
			if err != nil {
				return err
			}
			ans, err := a.call(c.Context(), "", http.MethodPut, path(args[0])+"/limit", wait.query(waitMost), header, body)
			if err != nil {
				return err
			}
			return a.told(c.Context(), wait, ans, func() error { return show(a, ans, printTenant) })
		}}
	limit.register(set)
	set.Flags().BoolVar(&def, "default", false, "the keyspace's own tenant_limit, if it has one")
	set.Flags().StringVar(&reason, "reason", "", "why, for the record")
	addIfRev(set, zeroIsRev)
	addWait(set)
	c.AddCommand(get, set)
	return c
}
