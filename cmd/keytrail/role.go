package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

// roleView is a role as the endpoint shows it.
type roleView struct {
	ID          string   `json:"id"`
	Keyspace    string   `json:"keyspace"`
	Tenant      string   `json:"tenant"`
	Level       string   `json:"level"`
	Description string   `json:"description"`
	Scopes      []string `json:"scopes"`
	Rev         uint64   `json:"rev"`
}

func printRole(w io.Writer, r *roleView) {
	field(w, "role", r.ID)
	field(w, "keyspace", r.Keyspace)
	field(w, "tenant", r.Tenant)
	field(w, "level", r.Level)
	field(w, "description", r.Description)
	field(w, "scopes", strings.Join(r.Scopes, ", "))
	field(w, "rev", fmt.Sprint(r.Rev))
}

func (a *app) roleCmd() *cobra.Command {
	var keyspace, tenant string
	c := &cobra.Command{Use: "role", Short: "Define and read a tenant's roles", Aliases: []string{"roles"}}
	c.PersistentFlags().StringVar(&keyspace, "keyspace", "", "the keyspace")
	c.PersistentFlags().StringVar(&tenant, "tenant", "", "the tenant")
	c.MarkPersistentFlagRequired("keyspace")
	c.MarkPersistentFlagRequired("tenant")
	path := func(role string) string {
		p := "/v1/keyspaces/" + url.PathEscape(keyspace) + "/tenants/" + url.PathEscape(tenant) + "/roles"
		if role != "" {
			p += "/" + url.PathEscape(role)
		}
		return p
	}
	var scopes []string
	var level, description string
	var accept bool
	define := &cobra.Command{Use: "define ROLE", Short: "Define a role, or replace its scopes", Args: exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			body := map[string]any{"scopes": list(scopes)}
			if level != "" {
				body["level"] = level
			}
			if description != "" {
				body["description"] = description
			}
			header, err := ifRev(c)
			if err != nil {
				return err
			}
			wait, err := readWait(c)
			if err != nil {
				return err
			}
			query := wait.query(waitMost)
			if accept {
				query.Set("accept_holders", "true")
			}
			ans, err := a.call(c.Context(), "", http.MethodPut, path(args[0]), query, header, body)
			if err != nil {
				return err
			}
			return a.told(c.Context(), wait, ans, func() error { return show(a, ans, printRole) })
		}}
	define.Flags().StringSliceVar(&scopes, "scope", nil, "a scope of the keyspace")
	define.Flags().StringVar(&level, "level", "", "tenant or a resource kind (default: the role's own, else tenant)")
	define.Flags().StringVar(&description, "description", "", "for people")
	define.Flags().BoolVar(&accept, "accept-holders", false, "define a deleted role again although live keys hold it still: they have its scopes by that")
	get := &cobra.Command{Use: "get ROLE", Short: "Show one role", Args: exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			ans, err := a.call(c.Context(), "", http.MethodGet, path(args[0]), nil, nil, nil)
			if err != nil {
				return err
			}
			return show(a, ans, printRole)
		}}
	ls := &cobra.Command{Use: "list", Short: "List the tenant's roles", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "", path(""), url.Values{}, true, "ROLE\tLEVEL\tSCOPES\tDESCRIPTION", func(r *roleView) string {
				return cells(r.ID, dash(r.Level), join(r.Scopes), r.Description)
			})
		}}
	del := &cobra.Command{Use: "delete ROLE", Short: "Delete a role: it grants nothing from then on", Args: exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			header, err := ifRev(c)
			if err != nil {
				return err
			}
			wait, err := readWait(c)
			if err != nil {
				return err
			}
			ans, err := a.call(c.Context(), "", http.MethodDelete, path(args[0]), wait.query(waitMost), header, nil)
			if err != nil {
				return err
			}
			return a.told(c.Context(), wait, ans, func() error {
				if a.json {
					return a.printJSON(ans)
				}
				_, err := fmt.Fprintf(a.out, "role %s deleted\n", args[0])
				return err
			})
		}}
	addIfRev(define, zeroIsNew)
	addIfRev(del, zeroIsNone)
	addWait(define)
	addWait(del)
	c.AddCommand(define, get, ls, del)
	return c
}
