package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events"
)

func (a *app) keyspaceCmd() *cobra.Command {
	c := &cobra.Command{Use: "keyspace", Short: "Define and read key regimes", Aliases: []string{"keyspaces"},
		Long: `A keyspace is one key regime: what secrets look like, which scopes there are,
how long keys live. It is a document; schemas/keyspace.v1.json describes it and
deploy/regimes holds real ones.`}
	c.AddCommand(a.keyspaceApply(), a.keyspaceGet(), a.keyspaceList())
	return c
}

func (a *app) keyspaceApply() *cobra.Command {
	var file, reason string
	c := &cobra.Command{Use: "apply -f FILE", Short: "Define a keyspace from a YAML document, or replace its definition", Args: none,
		Example: "  keytrail keyspace apply -f deploy/regimes/scribe-sight.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			name, def, err := readKeyspace(file, a.in)
			if err != nil {
				return err
			}
			if reason != "" {
				def["reason"] = reason
			}
			ans, err := a.call(c.Context(), "", http.MethodPut, "/v1/keyspaces/"+url.PathEscape(name), nil, nil, def)
			if err != nil {
				return err
			}
			return show(a, ans, printKeyspace)
		}}
	c.Flags().StringVarP(&file, "file", "f", "", "the document; - reads standard input")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.MarkFlagRequired("file")
	return c
}

// readKeyspace reads the document: a definition and its name. Errors of the
// YAML point at the line.
func readKeyspace(file string, in io.Reader) (string, map[string]any, error) {
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(in, 1<<20))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", nil, fmt.Errorf("read the keyspace: %w", err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return "", nil, fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, true))
	}
	name, _ := doc["name"].(string)
	if err := events.KeyspaceID(name).Validate(); err != nil {
		return "", nil, fmt.Errorf("%s: name: %w", file, err)
	}
	delete(doc, "name")
	return name, doc, nil
}

func (a *app) keyspaceGet() *cobra.Command {
	return &cobra.Command{Use: "get KEYSPACE", Short: "Show one keyspace", Args: exactly("KEYSPACE"),
		RunE: func(c *cobra.Command, args []string) error {
			ans, err := a.call(c.Context(), "", http.MethodGet, "/v1/keyspaces/"+url.PathEscape(args[0]), nil, nil, nil)
			if err != nil {
				return err
			}
			return show(a, ans, printKeyspace)
		}}
}

func (a *app) keyspaceList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the keyspaces", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "", "/v1/keyspaces", url.Values{}, true, "KEYSPACE\tREV\tKEY TYPES\tSCOPES\tTITLE", func(k *keyspaceView) string {
				return fmt.Sprintf("%s\t%d\t%s\t%d\t%s", k.ID, k.Rev, join(k.prefixes()), len(k.Definition.Scopes), k.Definition.Title)
			})
		}}
}

// keyspaceView is a keyspace as the door shows it.
type keyspaceView struct {
	ID         string            `json:"id"`
	Rev        uint64            `json:"rev"`
	Definition events.Definition `json:"definition"`
	UpdatedAt  string            `json:"updated_at"`
}

func (k *keyspaceView) prefixes() []string {
	var out []string
	for _, t := range k.Definition.KeyTypes {
		out = append(out, t.Name+"="+dash(t.Prefix))
	}
	return out
}

func printKeyspace(w io.Writer, k *keyspaceView) {
	field(w, "keyspace", k.ID)
	field(w, "title", k.Definition.Title)
	field(w, "rev", fmt.Sprint(k.Rev))
	field(w, "updated", k.UpdatedAt)
	field(w, "credential", strings.TrimSpace(k.Definition.Credential.HeaderName()+": "+k.Definition.Credential.SchemeName()+" …"))
	for _, t := range k.Definition.KeyTypes {
		field(w, "key type", fmt.Sprintf("%s: %s + %d characters; defaults %s", t.Name, dash(t.Prefix), t.Len(), join(t.Defaults)))
	}
	for _, s := range k.Definition.Scopes {
		field(w, "scope", strings.TrimSpace(s.Name+"  "+s.Description))
	}
	field(w, "resources", strings.Join(k.Definition.Resources, ", "))
}
