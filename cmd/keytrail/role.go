package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
)

// roleView is a role as the door shows it.
type roleView struct {
	ID          string   `json:"id"`
	Keyspace    string   `json:"keyspace"`
	Tenant      string   `json:"tenant"`
	Level       string   `json:"level"`
	Description string   `json:"description"`
	Scopes      []string `json:"scopes"`
}

func printRole(w io.Writer, r *roleView) {
	field(w, "role", r.ID)
	field(w, "keyspace", r.Keyspace)
	field(w, "tenant", r.Tenant)
	field(w, "level", r.Level)
	field(w, "description", r.Description)
	field(w, "scopes", strings.Join(r.Scopes, ", "))
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
	define := &cobra.Command{Use: "define ROLE", Short: "Define a role, or replace its scopes", Args: exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			body := map[string]any{"scopes": list(scopes)}
			if level != "" {
				body["level"] = level
			}
			if description != "" {
				body["description"] = description
			}
			ans, err := a.call(c.Context(), "", http.MethodPut, path(args[0]), nil, nil, body)
			if err != nil {
				return err
			}
			return show(a, ans, printRole)
		}}
	define.Flags().StringSliceVar(&scopes, "scope", nil, "a scope of the keyspace")
	define.Flags().StringVar(&level, "level", "", "tenant (default) or a resource kind")
	define.Flags().StringVar(&description, "description", "", "for people")
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
				return strings.Join([]string{r.ID, dash(r.Level), join(r.Scopes), r.Description}, "\t")
			})
		}}
	del := &cobra.Command{Use: "delete ROLE", Short: "Delete a role: it grants nothing from then on", Args: exactly("ROLE"),
		RunE: func(c *cobra.Command, args []string) error {
			_, err := a.call(c.Context(), "", http.MethodDelete, path(args[0]), nil, nil, nil)
			if err == nil {
				fmt.Fprintf(a.out, "role %s deleted\n", args[0])
			}
			return err
		}}
	c.AddCommand(define, get, ls, del)
	return c
}
