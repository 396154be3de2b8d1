package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/internal/regimes"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

func (a *app) keyspaceCmd() *cobra.Command {
	c := &cobra.Command{Use: "keyspace", Short: "Define and read keyspaces", Aliases: []string{"keyspaces"},
		Long: `A keyspace says what secrets look like, which scopes there are, how
long keys live. It is a document; schemas/keyspace.v1.json describes it and
deploy/regimes holds real ones.`}
	c.AddCommand(a.keyspaceApply(), a.keyspaceValidate(), a.keyspaceGet(), a.keyspaceList())
	return c
}

func (a *app) keyspaceApply() *cobra.Command {
	var file, reason string
	var dryRun, violations, widening bool
	c := &cobra.Command{Use: "apply -f FILE", Short: "Define a keyspace from a YAML or JSON document, or replace its definition", Args: none,
		Long: `Define a keyspace from a YAML or JSON document, or replace its definition.

The document is checked first, as by keyspace validate. What is wrong, here or
for the server, is told with its line: FILE:LINE:COLUMN: member: what is wanted.

A definition that live keys do not fit, or by which they gain power, is refused and
nothing is written. --dry-run says what would change, which keys do not fit and
which gain, and why; it ends with 1 if there are any. --accept-violations and
--accept-widening apply it: the keys stay as they are, and what they may do follows
the definition.`,
		Example: "  keytrail keyspace apply -f deploy/regimes/scribe-sight.yaml --dry-run\n  keytrail keyspace apply -f deploy/regimes/scribe-sight.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			doc, err := a.readKeyspace(file)
			if err != nil {
				return err
			}
			header, err := ifRev(c)
			if err != nil {
				return err
			}
			wait, err := readWait(c)
			if err != nil {
				return err
			}
			path, query, def := "/v1/keyspaces/"+url.PathEscape(string(doc.Name())), wait.query(waitMost), doc.Definition(reason)
			if dryRun {
				return onLines(doc, a.reviewKeyspace(c.Context(), path, header, def))
			}
			if violations {
				query.Set("accept_violations", "true")
			}
			if widening {
				query.Set("accept_widening", "true")
			}
			ans, err := a.call(c.Context(), "", http.MethodPut, path, query, header, def)
			if err != nil {
				return onLines(doc, err)
			}
			return a.told(c.Context(), wait, ans, func() error { return show(a, ans, printKeyspace) })
		}}
	c.Flags().StringVarP(&file, "file", "f", "", "the document; - reads standard input")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "write nothing; tell what would change, which keys do not fit and which gain power")
	c.Flags().BoolVar(&violations, "accept-violations", false, "apply it although live keys do not fit")
	c.Flags().BoolVar(&widening, "accept-widening", false, "apply it although live keys gain power by it")
	addIfRev(c, zeroIsNew)
	c.MarkFlagsMutuallyExclusive("dry-run", "accept-violations")
	c.MarkFlagsMutuallyExclusive("dry-run", "accept-widening")
	addWait(c)
	c.MarkFlagsMutuallyExclusive("dry-run", "wait")
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
				return cells(k.ID, fmt.Sprint(k.Rev), join(k.prefixes()), fmt.Sprint(len(k.Definition.Scopes)), k.Definition.Title)
			})
		}}
}

// keyspaceView is a keyspace as the endpoint shows it.
type keyspaceView struct {
	ID         string              `json:"id"`
	Rev        uint64              `json:"rev"`
	Definition keyspace.Definition `json:"definition"`
	UpdatedAt  string              `json:"updated_at"`

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
		field(w, "plan", p.Name+": "+limitName(&keyspace.Limit{PerMinute: p.PerMinute, Burst: p.Burst}))
	}
	field(w, "limit of a key", limitName(d.Limit))
	field(w, "limit of a tenant", limitName(d.TenantLimit))
	checks := make([]string, len(d.Order()))
	for i, c := range d.Order() {
		checks[i] = string(c)
	}
	field(w, "checks", strings.Join(checks, ", "))
}

func grantRules(g *keyspace.GrantRules) (out []string) {
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

func expiryRules(p *keyspace.ExpiryPolicy) (out []string) {
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
	Violations []reviewLine   `json:"violations"`
	Violating  int            `json:"violating"`
	Tenants    int            `json:"violating_tenants"`
	Widening   []reviewLine   `json:"widening"`
	Widened    int            `json:"widened"`
	Keys       int            `json:"keys"`
}

// reviewLine is one thing of a key that a definition takes or gives.
type reviewLine struct {
	KeyID   string `json:"key_id,omitzero"` // "": every live key
	Tenant  string `json:"tenant,omitzero"`
	Name    string `json:"name,omitzero"`
	Field   string `json:"field"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (l *reviewLine) cells() string {
	who := "every key"
	if l.Tenant != "" {
		who = "all of the tenant"
	}
	return cells(cmp.Or(l.KeyID, who), dash(l.Tenant), dash(l.Name), l.Field, l.Message)
}

func printLines(w io.Writer, head string, lines []reviewLine) {
	if len(lines) > 0 {
		fmt.Fprintln(w, "\nKEY\tTENANT\tNAME\tFIELD\t"+head)
	}
	for i := range lines {
		fmt.Fprintln(w, lines[i].cells())
	}
}

// reviewKeyspace tells what applying the definition would do. Keys that would not
// fit are an error, so that a pipeline stops.
func (a *app) reviewKeyspace(ctx context.Context, path string, header http.Header, def any) error {
	c, err := a.client("")
	if err != nil {
		return err
	}
	var r reviewView
	if err := c.Do(ctx, http.MethodPut, path, url.Values{"dry_run": {"true"}}, header, def, &r); err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(&r); err != nil {
			return err
		}
	} else {
		for _, path := range r.Changes {
			fmt.Fprintf(a.out, "changes %s\n", line(path))
		}
		if len(r.Changes) == 0 {
			fmt.Fprintln(a.out, "changes nothing")
		}
		w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
		printLines(w, "WHY", r.Violations)
		printLines(w, "GAINS", r.Widening)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if r.Violating+r.Tenants > 0 {
		who := fmt.Sprintf("%d of %d live keys", r.Violating, r.Keys)
		if r.Tenants > 0 {
			who += fmt.Sprintf(" and %d tenants", r.Tenants)
		}
		err = fmt.Errorf("%s do not fit the definition, or lose by it; nothing was written; --accept-violations applies it all the same", who)
	}
	if r.Widened > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d live keys gain power by the definition; nothing was written; --accept-widening applies it all the same", r.Widened, r.Keys))
	}
	if err != nil {
		return err
	}
	if !a.json {
		fmt.Fprintf(a.out, "all %d live keys fit; nothing was written\n", r.Keys)
	}
	return nil
}
