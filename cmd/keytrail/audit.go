package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/internal/files"
)

func (a *app) auditCmd() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Ask the record, and take copies of it",
		Long: `Ask the record. Reading it is itself recorded: each question and each export
appends audit.queried or audit.exported with your key as its actor.`}
	c.AddCommand(a.auditEvents(), a.auditUses(), a.auditUsage(), a.auditBlocks(), a.auditExport())
	return c
}

// filterFlags are the filters of the record, by their names at the endpoint.
type filterFlags struct{ values map[string]*string }

func (f *filterFlags) register(c *cobra.Command, names ...string) {
	help := map[string]string{
		"keyspace": "only this keyspace", "tenant": "only this tenant", "key": "only this key (key_…)",
		"actor": "only what this actor did", "type": "only this type of event, as key.revoked",
		"outcome": "allowed or denied", "reason": "only this reason, as scope_missing",
		"ip": "from this address or network; unknown for those without one", "scope": "only this scope", "node": "only this verifier node",
		"request-id": "only of this request (req_…)", "endpoint": "only operators' calls of this endpoint, as \"PUT /v1/keys/{id}/scopes\"",
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
		set(q, filterName(n), *v)
	}
	return q
}

// filterName is the filter that a flag sets: --request-id sets request_id.
func filterName(flag string) string { return strings.ReplaceAll(flag, "-", "_") }

func (a *app) auditEvents() *cobra.Command {
	var f filterFlags
	var page pageFlags
	c := &cobra.Command{Use: "events", Short: "The trail: what was done to keys, newest first", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "KEYTRAIL_AUDIT_URL", "/v1/audit/events", page.query(f.query()), page.all, eventHead, eventRow)
		}}
	f.register(c, "keyspace", "tenant", "key", "actor", "type", "request-id", "ip", "from", "to")
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
		Endpoint string `json:"endpoint"`
	}
	c := &cobra.Command{Use: "uses", Short: "The ledger: every verification, allowed or denied, newest first", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "KEYTRAIL_AUDIT_URL", "/v1/audit/uses", page.query(f.query()), page.all,
				"TIME\tTENANT\tKEY\tREASON\tSCOPE\tRESOURCE\tENDPOINT\tIP\tUSE", func(u *useView) string {
					res := ""
					if m, ok := u.Resource.(map[string]any); ok {
						res = fmt.Sprint(m["kind"], "/", m["id"])
					}
					return cells(u.Time, dash(u.Tenant), dash(u.KeyID), u.Reason, dash(u.Scope), dash(res), dash(u.Endpoint), dash(u.IP), u.ID)
				})
		}}
	f.register(c, "keyspace", "tenant", "key", "outcome", "reason", "endpoint", "request-id", "ip", "scope", "node", "from", "to")
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
				return cells(u.At, u.Reason, fmt.Sprint(u.Count))
			})
		}}
	f.register(c, "keyspace", "tenant", "key", "from", "to", "per")
	return c
}

func (a *app) auditBlocks() *cobra.Command {
	var f filterFlags
	var page pageFlags
	type blockView struct {
		Block    string `json:"block"`
		Keyspace string `json:"keyspace"`
		Reason   string `json:"reason"`
		Count    uint64 `json:"count"`
		Recorded uint64 `json:"recorded"`
		First    string `json:"first"`
		Last     string `json:"last"`
	}
	c := &cobra.Command{Use: "blocks", Short: "Who guesses keys: uses of unknown keys by block of addresses, the most first", Args: none,
		Long: `Who guesses keys: uses of unknown keys by block of addresses (/24, /48), the most
first. A verifier records the first ones of a second one by one (RECORDED; audit
uses shows them) and counts the others; COUNT is all of them. "other" are those of
blocks that a node did not tell apart: it names 64 a second.`,
		Example: "  keytrail audit blocks --from 2026-01-01T00:00:00Z --keyspace scribe-sight",
		RunE: func(c *cobra.Command, _ []string) error {
			return table(c.Context(), a, "KEYTRAIL_AUDIT_URL", "/v1/audit/blocks", page.query(f.query()), page.all,
				"BLOCK\tKEYSPACE\tREASON\tCOUNT\tRECORDED\tFIRST\tLAST", func(b *blockView) string {
					return cells(b.Block, dash(b.Keyspace), b.Reason, fmt.Sprint(b.Count), fmt.Sprint(b.Recorded), b.First, b.Last)
				})
		}}
	f.register(c, "keyspace", "reason", "ip", "node", "from", "to")
	page.register(c)
	return c
}

func (a *app) auditExport() *cobra.Command {
	var f filterFlags
	var kind, format, file string
	c := &cobra.Command{Use: "export", Short: "Take a copy of the record as CSV or JSON lines", Args: none,
		Long: `Take a copy of the record. It is streamed; a line on standard error tells the
progress. At the end the rows are counted and the SHA-256 of the bytes is checked
against the server's record of the export: a copy that was cut off is an error. With -o, the file has
its name followed by .part until it is whole.`,
		Example: "  keytrail audit export --kind uses --tenant acme --from 2026-01-01T00:00:00Z --format csv -o uses.csv",
		RunE: func(c *cobra.Command, _ []string) error {
			filter := map[string]string{}
			for n, v := range f.values {
				if *v != "" {
					filter[filterName(n)] = *v
				}
			}
			cl, err := a.client("KEYTRAIL_AUDIT_URL")
			if err != nil {
				return err
			}
			// The file first: an export that has nowhere to go is not on the record.
			out, whole := a.raw, func() error { return nil }
			if file != "" && file != "-" {
				f, err := files.Create(file, false)
				if err != nil {
					return fmt.Errorf("write the export: %w", err)
				}
				defer f.Close()
				out, whole = f, f.Commit
			}
			resp, err := cl.Send(c.Context(), http.MethodPost, "/v1/audit/exports", nil, nil, map[string]any{"kind": kind, "format": format, "filter": filter})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if err := a.saveExport(c.Context(), cl, resp, out, format == "csv"); err != nil {
				if file != "" && file != "-" {
					err = fmt.Errorf("%w; what arrived is in %s.part", err, file)
				}
				return err
			}
			if err := whole(); err != nil {
				return fmt.Errorf("write the export: %w", err)
			}
			return nil
		}}
	c.Flags().StringVar(&kind, "kind", "events", "events or uses")
	c.Flags().StringVar(&format, "format", "jsonl", "csv or jsonl")
	c.Flags().StringVarP(&file, "output", "o", "", "a new file (default: standard output)")
	f.register(c, "keyspace", "tenant", "key", "actor", "type", "outcome", "reason", "endpoint", "request-id", "ip", "scope", "node", "from", "to")
	return c
}

// exportManifest is what the record has about an export.
type exportManifest struct {
	State  string `json:"state"`
	Rows   uint64 `json:"rows"`
	Digest string `json:"digest"`
}

// manifestPatience is how long the end of an export may take to show in the copy: it
// is behind while the store is busy, and the rows that arrived are worth the wait.
const manifestPatience = 2 * time.Minute

// manifest asks how the export ended, until that is on the record.
func manifest(ctx context.Context, cl *client.Client, id string) (*exportManifest, error) {
	if id == "" {
		return nil, errors.New("the answer does not name the export")
	}
	ctx, cancel := context.WithTimeout(ctx, manifestPatience)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		var ans struct {
			Data exportManifest `json:"data"`
		}
		err := cl.Do(ctx, http.MethodGet, "/v1/audit/exports/"+url.PathEscape(id), nil, nil, nil, &ans)
		p := new(client.Problem)
		late := errors.As(err, &p) && (p.Status == http.StatusNotFound || p.Status == http.StatusServiceUnavailable)
		if err != nil && !late || err == nil && ans.Data.State != "running" {
			return &ans.Data, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return &ans.Data, err
		}
	}
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

func (a *app) saveExport(ctx context.Context, cl *client.Client, resp *http.Response, out io.Writer, header bool) error {
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
	var lost *gaps
	if h := resp.Header.Get("Keytrail-Gaps"); h != "" {
		lost = new(gaps)
		if err := json.Unmarshal([]byte(h), lost); err != nil {
			return fmt.Errorf("the answer is not what this command expects: %w", err)
		}
	}
	remark(a.err, lost, resp.Header.Values("Keytrail-Note"))
	rows, digest := resp.Trailer.Get("Keytrail-Rows"), resp.Trailer.Get("Keytrail-Digest")
	if digest == "" { // cut off, or a proxy between has dropped the trailers
		m, err := manifest(ctx, cl, resp.Header.Get("Keytrail-Export-Id"))
		if err != nil {
			return fmt.Errorf("%d rows arrived without a digest, and the server's record of the export cannot be read: %w", p.rows, err)
		}
		switch m.State {
		case "complete":
		case "running":
			return fmt.Errorf("%d rows arrived without a digest, and the server's record did not say within %v how the export ended: it is in GET /v1/audit/exports/%s", p.rows, manifestPatience, resp.Header.Get("Keytrail-Export-Id"))
		default:
			return fmt.Errorf("the export was cut off after %d rows: the server did not finish it", p.rows)
		}
		rows, digest = strconv.FormatUint(m.Rows, 10), m.Digest
	}
	if digest != sum.String() {
		return fmt.Errorf("the export is damaged: its SHA-256 is %s, the server's %s", sum, digest)
	}
	fmt.Fprintf(a.err, "%s rows, SHA-256 %s\n", rows, digest)
	return nil
}
