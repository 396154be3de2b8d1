package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) auditCmd() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Ask the record, and take copies of it",
		Long: `Ask the record. Reading it is itself recorded: each question and each export
appends audit.queried or audit.exported with your key as its actor.`}
	c.AddCommand(a.auditEvents(), a.auditUses(), a.auditUsage(), a.auditExport())
	return c
}

// filterFlags are the filters of the record, by their names at the door.
type filterFlags struct{ values map[string]*string }

func (f *filterFlags) register(c *cobra.Command, names ...string) {
	help := map[string]string{
		"keyspace": "only this keyspace", "tenant": "only this tenant", "key": "only this key (key_…)",
		"actor": "only what this actor did", "type": "only this type of event, as key.revoked",
		"outcome": "allowed or denied", "reason": "only this reason, as scope_missing",
		"ip": "from this address or network", "scope": "only this scope", "node": "only this verifier node",
		"from": "since this RFC 3339 instant", "to": "before this RFC 3339 instant", "per": "hour or day",
	}
	f.values = map[string]*string{}
	for _, n := range names {
		f.values[n] = c.Flags().String(n, "", help[n])
	}
}

func (f *filterFlags) query() url.Values {
	q := url.Values{}
	for n, v := range f.values {
		set(q, n, *v)
	}
	return q
}

func (a *app) auditEvents() *cobra.Command {
	var f filterFlags
	var page pageFlags
	c := &cobra.Command{Use: "events", Short: "The trail: what was done to keys, newest first", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "KEYTRAIL_AUDIT_URL", "/v1/audit/events", page.query(f.query()), page.all, eventHead, eventRow)
		}}
	f.register(c, "keyspace", "tenant", "key", "actor", "type", "ip", "from", "to")
	page.register(c)
	return c
}

func (a *app) auditUses() *cobra.Command {
	var f filterFlags
	var page pageFlags
	type useView struct {
		ID       string `json:"id"`
		Time     string `json:"time"`
		Tenant   string `json:"tenant"`
		KeyID    string `json:"key_id"`
		Reason   string `json:"reason"`
		Scope    string `json:"scope"`
		IP       string `json:"ip"`
		Resource any    `json:"resource"`
	}
	c := &cobra.Command{Use: "uses", Short: "The ledger: every verification, allowed or denied, newest first", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "KEYTRAIL_AUDIT_URL", "/v1/audit/uses", page.query(f.query()), page.all,
				"TIME\tTENANT\tKEY\tREASON\tSCOPE\tRESOURCE\tIP\tUSE", func(u *useView) string {
					res := ""
					if m, ok := u.Resource.(map[string]any); ok {
						res = fmt.Sprint(m["kind"], "/", m["id"])
					}
					return strings.Join([]string{u.Time, dash(u.Tenant), dash(u.KeyID), u.Reason, dash(u.Scope), dash(res), dash(u.IP), u.ID}, "\t")
				})
		}}
	f.register(c, "keyspace", "tenant", "key", "outcome", "reason", "ip", "scope", "node", "from", "to")
	page.register(c)
	return c
}

func (a *app) auditUsage() *cobra.Command {
	var f filterFlags
	type usageView struct {
		At      string `json:"at"`
		Allowed bool   `json:"allowed"`
		Reason  string `json:"reason"`
		Count   uint64 `json:"count"`
	}
	c := &cobra.Command{Use: "usage", Short: "Counts of uses per hour or day, by outcome and reason", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "KEYTRAIL_AUDIT_URL", "/v1/audit/usage", f.query(), true, "FROM\tREASON\tCOUNT", func(u *usageView) string {
				return fmt.Sprintf("%s\t%s\t%d", u.At, u.Reason, u.Count)
			})
		}}
	f.register(c, "keyspace", "tenant", "key", "from", "to", "per")
	return c
}

func (a *app) auditExport() *cobra.Command {
	var f filterFlags
	var kind, format, file string
	c := &cobra.Command{Use: "export", Short: "Take a copy of the record as CSV or JSON lines", Args: none,
		Long: `Take a copy of the record. It is streamed; a line on standard error tells the
progress. At the end the rows are counted and the SHA-256 of the bytes is checked
against the server's: a copy that was cut off is an error.`,
		Example: "  keytrail audit export --kind uses --tenant acme --from 2026-01-01T00:00:00Z --format csv -o uses.csv",
		RunE: func(c *cobra.Command, _ []string) error {
			filter := map[string]string{}
			for n, v := range f.values {
				if *v != "" {
					filter[n] = *v
				}
			}
			cl, err := a.client("KEYTRAIL_AUDIT_URL")
			if err != nil {
				return err
			}
			resp, err := cl.Send(c.Context(), http.MethodPost, "/v1/audit/exports", nil, nil, map[string]any{"kind": kind, "format": format, "filter": filter})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			out := a.out
			if file != "" && file != "-" {
				fh, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return fmt.Errorf("write the export: %w", err)
				}
				defer fh.Close()
				out = fh
			}
			return a.saveExport(resp, out, format == "csv")
		}}
	c.Flags().StringVar(&kind, "kind", "events", "events or uses")
	c.Flags().StringVar(&format, "format", "jsonl", "csv or jsonl")
	c.Flags().StringVarP(&file, "output", "o", "", "a new file (default: standard output)")
	f.register(c, "keyspace", "tenant", "key", "actor", "type", "outcome", "reason", "ip", "scope", "node", "from", "to")
	return c
}

// progress prints how far a long copy is, at most twice a second.
type progress struct {
	w     io.Writer
	total string
	rows  int
	last  time.Time
}

func (p *progress) Write(b []byte) (int, error) {
	for _, c := range b {
		if c == '\n' {
			p.rows++
		}
	}
	if now := time.Now(); now.Sub(p.last) > 500*time.Millisecond {
		p.last = now
		p.print("\r")
	}
	return len(b), nil
}

func (p *progress) print(lead string) {
	fmt.Fprintf(p.w, "%sexported %d of %s rows", lead, max(0, p.rows), dash(p.total))
}

func (a *app) saveExport(resp *http.Response, out io.Writer, header bool) error {
	p := &progress{w: a.err, total: resp.Header.Get("Keytrail-Total-Rows"), last: time.Now()}
	if header {
		p.rows = -1 // the first line names the columns
	}
	sum := newDigest()
	w := bufio.NewWriterSize(out, 1<<20)
	if _, err := io.Copy(io.MultiWriter(w, p, sum), resp.Body); err != nil {
		return fmt.Errorf("the export was cut off after %d rows: %w", p.rows, err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	p.print("\r")
	fmt.Fprintln(a.err)
	rows, digest := resp.Trailer.Get("Keytrail-Rows"), resp.Trailer.Get("Keytrail-Digest")
	if digest == "" {
		return fmt.Errorf("the export was cut off after %d rows: the server did not finish it", p.rows)
	}
	if digest != sum.String() {
		return fmt.Errorf("the export is damaged: its SHA-256 is %s, the server's %s", sum, digest)
	}
	fmt.Fprintf(a.err, "%s rows, SHA-256 %s\n", rows, digest)
	return nil
}
