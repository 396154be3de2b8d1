package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/internal/regimes"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

func (a *app) keyspaceCmd() *cobra.Command {
	c := &cobra.Command{Use: "keyspace", Short: "Define and read key regimes", Aliases: []string{"keyspaces"},
		Long: `A keyspace is one key regime: what secrets look like, which scopes there are,
how long keys live. It is a document; schemas/keyspace.v1.json describes it and
deploy/regimes holds real ones.`}
	c.AddCommand(a.keyspaceApply(), a.keyspaceValidate(), a.keyspaceGet(), a.keyspaceList())
	return c
}

func (a *app) keyspaceApply() *cobra.Command {
	var file, reason string
	var dryRun, accept bool
	c := &cobra.Command{Use: "apply -f FILE", Short: "Define a keyspace from a YAML or JSON document, or replace its definition", Args: none,
		Long: `Define a keyspace from a YAML or JSON document, or replace its definition.

The document is checked first, as by keyspace validate. What is wrong, here or
for the server, is told with its line: FILE:LINE:COLUMN: member: what is wanted.

A definition that keys which live do not fit is refused and nothing is written.
--dry-run says what would change and which keys do not fit, and why; it ends with 1
if there are any. --accept-violations applies it: the keys stay as they are, and
what they may do follows the definition.`,
		Example: "  keytrail keyspace apply -f deploy/regimes/scribe-sight.yaml --dry-run\n  keytrail keyspace apply -f deploy/regimes/scribe-sight.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			doc, err := a.readKeyspace(file)
			if err != nil {
				return err
			}
			path, query, def := "/v1/keyspaces/"+url.PathEscape(string(doc.Name())), url.Values{}, doc.Definition(reason)
			if dryRun {
				return onLines(doc, a.reviewKeyspace(c.Context(), path, def))
			}
			if accept {
				query.Set("accept_violations", "true")
			}
			ans, err := a.call(c.Context(), "", http.MethodPut, path, query, nil, def)
			if err != nil {
				return onLines(doc, err)
			}
			return show(a, ans, printKeyspace)
		}}
	c.Flags().StringVarP(&file, "file", "f", "", "the document; - reads standard input")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "write nothing; tell what would change and which keys do not fit")
	c.Flags().BoolVar(&accept, "accept-violations", false, "apply it although live keys do not fit")
	c.MarkFlagsMutuallyExclusive("dry-run", "accept-violations")
	c.MarkFlagRequired("file")
	return c
}

func (a *app) keyspaceValidate() *cobra.Command {
	var files []string
	c := &cobra.Command{Use: "validate -f FILE...", Short: "Check keyspace documents, without a server",
		Long: `Check keyspace documents against the published JSON Schema and the rules of this
version, without a server. Every fault is told with its line on standard error:
FILE:LINE:COLUMN: member: what is wanted. The exit status is 1 if any document
is bad.`,
		Example: "  keytrail keyspace validate -f deploy/regimes/*.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			files := append(files, args...) // what a shell makes of -f *.yaml
			if len(files) == 0 {
				return usageError{fmt.Errorf("want -f FILE; see '%s --help'", c.CommandPath())}
			}
			var bad regimes.Faults
			for _, file := range files {
				doc, err := a.readKeyspace(file)
				var faults regimes.Faults
				if err != nil && !errors.As(err, &faults) {
					return err
				}
				bad = append(bad, faults...)
				switch {
				case a.json:
					if err := a.printVerdict(file, doc, faults); err != nil {
						return err
					}
				case err == nil:
					fmt.Fprintf(a.out, "%s: ok\n", shown(file))
				}
			}
			return bad.OrNil()
		}}
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "a document; - reads standard input; may be given several times")
	return c
}

// printVerdict writes what validate found as one line of JSON.
func (a *app) printVerdict(file string, doc *regimes.Document, faults regimes.Faults) error {
	v := struct {
		File     string            `json:"file"`
		Keyspace events.KeyspaceID `json:"keyspace,omitzero"`
		OK       bool              `json:"ok"`
		Faults   regimes.Faults    `json:"faults"`
	}{File: shown(file), OK: len(faults) == 0, Faults: faults}
	if doc != nil {
		v.Keyspace = doc.Name()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, string(b))
	return err
}

// readKeyspace reads a document and checks it. What is wrong with it is
// regimes.Faults.
func (a *app) readKeyspace(file string) (*regimes.Document, error) {
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, unreadable(file, err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, regimes.MaxBytes+1))
	if err != nil {
		return nil, unreadable(file, err)
	}
	doc, err := regimes.Read(shown(file), b)
	if err != nil {
		return nil, err
	}
	return doc, doc.Check().OrNil()
}

func unreadable(file string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err // the name is in the fault
	}
	return regimes.Faults{{File: shown(file), Message: "cannot be read: " + err.Error(), Source: "file"}}
}

// shown is how a message names a file.
func shown(file string) string {
	if file == "-" {
		return "stdin"
	}
	return file
}

// onLines tells the bad fields of a server's answer on the lines of the document.
// The reason is not from there.
func onLines(doc *regimes.Document, err error) error {
	var p *api.Problem
	if !errors.As(err, &p) || len(p.Errors) == 0 {
		return err
	}
	var fields, others events.FieldErrors
	for _, e := range p.Errors {
		if e.Field == "reason" {
			e.Field = "--reason"
			others = append(others, e)
		} else {
			fields = append(fields, e)
		}
	}
	rest := *p
	rest.Errors = others
	return errors.Join(doc.Locate("server", fields).OrNil(), &rest)
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

	SecretPatterns []struct {
		Type    string `json:"type"`
		Pattern string `json:"pattern"` // "" when there is none
	} `json:"secret_patterns"`
}

func (k *keyspaceView) prefixes() []string {
	var out []string
	for _, t := range k.Definition.KeyTypes {
		out = append(out, t.Name+"="+dash(t.Prefix))
	}
	return out
}

func printKeyspace(w io.Writer, k *keyspaceView) {
	d := &k.Definition
	field(w, "keyspace", k.ID)
	field(w, "title", d.Title)
	field(w, "rev", fmt.Sprint(k.Rev))
	field(w, "updated", k.UpdatedAt)
	field(w, "credential", d.Credential.HeaderName()+": "+strings.TrimSpace(d.Credential.SchemeName()+" …"))
	if d.HTTPSOnly {
		field(w, "https only", "yes")
	}
	for i := range d.KeyTypes {
		t := &d.KeyTypes[i]
		form := fmt.Sprintf("%s + %d characters", dash(t.Prefix), t.Len())
		if t.Checksum != "" {
			form += fmt.Sprintf(" + %s checksum", t.Checksum)
		}
		field(w, "key type", fmt.Sprintf("%s: %s; defaults %s; environments %s", t.Name, form, join(t.Defaults), join(t.Environments)))
	}
	for _, p := range k.SecretPatterns {
		pattern := p.Pattern
		if pattern == "" {
			pattern = "none: without a prefix, secrets of this type cannot be found in text"
		}
		field(w, "secret pattern", p.Type+": "+pattern)
	}
	for _, s := range d.Scopes {
		field(w, "scope", strings.TrimSpace(s.Name+"  "+s.Description))
	}
	field(w, "grants", strings.Join(grantRules(&d.Grants), ", "))
	field(w, "resources", strings.Join(d.Resources, ", "))
	field(w, "expiry", strings.Join(expiryRules(&d.Expiry), ", "))
	for _, p := range d.Plans {
		field(w, "plan", p.Name+": "+limitName(&events.Limit{PerMinute: p.PerMinute, Burst: p.Burst}))
	}
	field(w, "limit of a key", limitName(d.Limit))
	field(w, "limit of a tenant", limitName(d.TenantLimit))
	checks := make([]string, len(d.Order()))
	for i, c := range d.Order() {
		checks[i] = string(c)
	}
	field(w, "checks", strings.Join(checks, ", "))
}

func grantRules(g *events.GrantRules) (out []string) {
	if g.By != "" {
		out = append(out, "by "+g.By)
	}
	if g.Required {
		out = append(out, "at least one")
	}
	if g.Fixed {
		out = append(out, "fixed at creation")
	}
	return out
}

func expiryRules(p *events.ExpiryPolicy) (out []string) {
	if p.Required {
		out = append(out, "required")
	}
	if p.Max != "" {
		out = append(out, "at most "+string(p.Max))
	}
	if p.Default != "" {
		out = append(out, "by default "+string(p.Default))
	}
	if len(p.Choices) > 0 {
		choices := make([]string, len(p.Choices))
		for i, c := range p.Choices {
			choices[i] = string(c)
		}
		out = append(out, "one of "+strings.Join(choices, ", "))
	}
	return out
}

// reviewView is what a dry run answers.
type reviewView struct {
	Data       jsontext.Value `json:"data"`
	Changes    []string       `json:"changes"`
	Violations []struct {
		KeyID   string `json:"key_id"`
		Tenant  string `json:"tenant"`
		Name    string `json:"name"`
		Field   string `json:"field"`
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"violations"`
	Violating int `json:"violating"`
	Keys      int `json:"keys"`
}

// reviewKeyspace tells what applying the definition would do. Keys that would not
// fit are an error, so that a pipeline stops.
func (a *app) reviewKeyspace(ctx context.Context, path string, def any) error {
	c, err := a.client("")
	if err != nil {
		return err
	}
	var r reviewView
	if err := c.Do(ctx, http.MethodPut, path, url.Values{"dry_run": {"true"}}, nil, def, &r); err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(&r); err != nil {
			return err
		}
	} else {
		for _, path := range r.Changes {
			fmt.Fprintf(a.out, "changes %s\n", path)
		}
		if len(r.Changes) == 0 {
			fmt.Fprintln(a.out, "changes nothing")
		}
		w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
		if len(r.Violations) > 0 {
			fmt.Fprintln(w, "\nKEY\tTENANT\tNAME\tFIELD\tWHY")
		}
		for _, v := range r.Violations {
			fmt.Fprintln(w, strings.Join([]string{v.KeyID, v.Tenant, v.Name, v.Field, v.Message}, "\t"))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if r.Violating > 0 {
		return fmt.Errorf("%d of %d live keys do not fit the definition; nothing was written; --accept-violations applies it all the same", r.Violating, r.Keys)
	}
	if !a.json {
		fmt.Fprintf(a.out, "all %d live keys fit; nothing was written\n", r.Keys)
	}
	return nil
}
