package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/cmd/client"
)

func (a *app) doctorCmd() *cobra.Command {
	var probe bool
	cfg := deepConfig{nats: natsFlags{user: "ctrl"}}
	var deep bool
	var verifiers []string
	c := &cobra.Command{Use: "doctor", Short: "Check a deployment, and say what to do", Args: none,
		Long: `Check a deployment from here: whether each role answers and is ready, whether the
clocks agree, whether the operator key is accepted, and what the metrics of each
role say about lost uses, a copy that is behind, and the like. The roles are at
--url, KEYTRAIL_VERIFY_URL (or each --verifier) and KEYTRAIL_AUDIT_URL.

With --deep it also reads the whole log over NATS and checks every chain; with
--clickhouse as well, it compares the copy with the log, row by row and cell by
cell. 'keytrail up' has no NATS port: stop it, and use --deep --dir.

A line that begins with ok or note needs nothing. For each FAIL there is a line
that says what to do, and the exit code is 1.`,
		Example: "  keytrail doctor\n" +
			"  KEYTRAIL_CLICKHOUSE=clickhouse://… keytrail doctor --deep --nats nats://127.0.0.1:4222\n" +
			"  keytrail doctor --deep --dir keytrail-data     # of a `keytrail up` that is stopped",
		RunE: func(c *cobra.Command, _ []string) error {
			if probe {
				return a.probe(c.Context())
			}
			for _, name := range []string{"nats", "clickhouse", "dir"} {
				if c.Flags().Changed(name) && !deep {
					return usageError{fmt.Errorf("--%s is for --deep: add --deep, or leave it out", name)}
				}
			}
			if c.Flags().Changed("dir") && c.Flags().Changed("nats") {
				return usageError{errors.New("--dir is for a stopped `keytrail up`, --nats for a running log: give one of them")}
			}
			d := &doctor{app: a}
			if c.Flags().Changed("dir") {
				d.stopped(c.Context(), cfg)
				return d.report()
			}
			roles := d.endpoints(c.Context(), verifiers)
			if deep && roles["up"] && !c.Flags().Changed("nats") && os.Getenv("KEYTRAIL_NATS") == "" {
				d.note("log", "not read: `keytrail up` has no NATS port. It checked its whole log when it started; "+
					"to check it again and compare the copy, stop it and run `keytrail doctor --deep --dir DIR`")
			} else if deep {
				d.running(c.Context(), cfg)
			}
			return d.report()
		}}
	c.Flags().BoolVar(&probe, "probe", false, "only ask /readyz of this host's KEYTRAIL_LISTEN; for container health checks")
	c.Flags().StringSliceVar(&verifiers, "verifier", nil, "URL of a verifier; may be repeated (default: KEYTRAIL_VERIFY_URL)")
	c.Flags().BoolVar(&deep, "deep", false, "read and check the whole log")
	cfg.nats.register(c)
	c.Flags().StringVar(&cfg.dsn, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), clickhouseUsage)
	hush(c.Flags(), "clickhouse", "")
	c.Flags().StringVar(&cfg.dir, "dir", "keytrail-data", "data directory of a `keytrail up` that is stopped (with --deep)")
	return c
}

// probe asks the /readyz of this host.
func (a *app) probe(ctx context.Context) error {
	addr := env("KEYTRAIL_LISTEN", "127.0.0.1:7070")
	if i := strings.LastIndexByte(addr, ':'); i >= 0 {
		addr = "127.0.0.1" + addr[i:]
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return (&client.Client{Base: "http://" + addr}).Do(ctx, http.MethodGet, "/readyz", nil, nil, nil, nil)
}

// finding is one line of the doctor's report.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, note or fail
	Found  string `json:"found"`
	Do     string `json:"do,omitzero"`
}

type doctor struct {
	app      *app
	findings []finding
}

func (d *doctor) ok(check, found string) { d.add(finding{Check: check, Status: "ok", Found: found}) }

// note says what happened and needs nothing now.
func (d *doctor) note(check, found string) {
	d.add(finding{Check: check, Status: "note", Found: found})
}

func (d *doctor) add(f finding) { d.findings = append(d.findings, f) }

func (d *doctor) fail(check string, err error, do string) {
	found := err.Error()
	if p := new(client.Problem); errors.As(err, &p) {
		found = p.Detail
	}
	d.add(finding{check, "fail", found, do})
}

func (d *doctor) report() error {
	bad := 0
	for _, f := range d.findings {
		if f.Status == "fail" {
			bad++
		}
	}
	if d.app.json {
		if err := d.app.printJSON(map[string]any{"data": d.findings}); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(d.app.out, 0, 4, 2, ' ', 0)
		for _, f := range d.findings {
			mark := f.Status
			if mark == "fail" {
				mark = "FAIL"
			}
			fmt.Fprintln(w, cells(mark, f.Check, f.Found))
			if f.Do != "" {
				fmt.Fprintf(w, "\t\t  do: %s\n", line(f.Do))
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d checks failed", bad, len(d.findings))
	}
	return nil
}

// endpoints checks every role that it knows the URL of, and returns which there are.
func (d *doctor) endpoints(ctx context.Context, verifiers []string) map[string]bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	roles := map[string]bool{}
	c, err := d.app.client("")
	if err != nil {
		d.fail("operator key", err, "name the file with --key-file, or set KEYTRAIL_ROOT_KEY")
		return roles
	}
	auditor := env("KEYTRAIL_AUDIT_URL", d.app.url)
	if len(verifiers) == 0 {
		verifiers = []string{env("KEYTRAIL_VERIFY_URL", d.app.url)}
	}
	seen := map[string]bool{}
	for i, base := range append(append([]string{d.app.url}, verifiers...), auditor) {
		if seen[base] {
			continue
		}
		seen[base] = true
		set := "--url or KEYTRAIL_URL"
		switch {
		case i == len(verifiers)+1:
			set = "KEYTRAIL_AUDIT_URL"
		case i > 0:
			set = "--verifier or KEYTRAIL_VERIFY_URL"
		}
		r := &role{doctor: d, client: client.Client{Base: base}, set: set}
		if r.check(ctx) {
			roles[r.name] = true
		}
	}
	if len(roles) == 0 {
		return roles
	}
	d.operator(ctx, c)
	if roles["control"] || roles["up"] {
		d.checkpoints(ctx, c)
	}
	ac := *c
	ac.Base = auditor
	if err := ac.Do(ctx, http.MethodGet, "/v1/audit/events?limit=1", nil, nil, nil, nil); err == nil {
		d.ok("record", "can be read at "+auditor)
		d.gaps(ctx, &ac)
	} else if p := new(client.Problem); errors.As(err, &p) && p.Status == http.StatusServiceUnavailable {
		d.fail("record", err, copyAdvice(p))
		d.engine()
	} else if errors.As(err, &p) && p.Status == http.StatusInsufficientStorage {
		d.fail("record", err, partAdvice["log"])
	} else if errors.As(err, &p) && p.Status == http.StatusNotFound {
		d.fail("record", fmt.Errorf("%s does not serve the record", auditor), "name the auditor with KEYTRAIL_AUDIT_URL")
	} else if errors.As(err, &p) {
		d.note("record", "this key may not read it: "+p.Detail)
	}
	return roles
}

// gapDays is how far back the doctor looks for gaps of the ledger.
const gapDays = 7

// gaps says what the ledger lacks of the last days. Nothing can bring it back.
func (d *doctor) gaps(ctx context.Context, c *client.Client) {
	var ans struct {
		Gaps gaps `json:"gaps"`
	}
	q := url.Values{"limit": {"1"}, "from": {time.Now().AddDate(0, 0, -gapDays).UTC().Format(time.RFC3339)}}
	switch err := c.Do(ctx, http.MethodGet, "/v1/audit/uses", q, nil, nil, &ans); {
	case err != nil:
		d.note("ledger", "not asked: "+err.Error())
	case ans.Gaps.Count > 0:
		d.note("ledger", fmt.Sprintf("of the last %d days, %s", gapDays, &ans.Gaps))
	default:
		d.ok("ledger", fmt.Sprintf("no gap in the last %d days", gapDays))
	}
}

// operator says whether the operator key opens the write side, and the way back in
// when it does not.
func (d *doctor) operator(ctx context.Context, c *client.Client) {
	err := c.Do(ctx, http.MethodGet, "/v1/keyspaces", nil, nil, nil, nil)
	p := new(client.Problem)
	switch {
	case err == nil:
		d.ok("operator key", "accepted")
	case !errors.As(err, &p):
		d.fail("operator key", err, "start the control role, or name it with --url or KEYTRAIL_URL")
	case p.Code == "scope_missing":
		d.note("operator key", "accepted, without the scope keyspaces:read")
	default:
		d.fail("operator key", err, operatorAdvice(p))
	}
}

// operatorAdvice says how to come back in, by the reason of the refusal.
func operatorAdvice(p *client.Problem) string {
	const another = "use another administrator's key with --key-file or KEYTRAIL_ROOT_KEY; if there is none, make a new root key (runbook: The root key is lost)"
	switch p.Code {
	case "key_missing", "key_malformed", "key_unknown":
		return "name the file of an operator key with --key-file, or set KEYTRAIL_ROOT_KEY; `keytrail up` keeps it in <dir>/root.key"
	case "key_revoked", "key_expired", "key_disabled":
		return another
	case "address_not_allowed":
		return "call from an address of the key's allowlist, or " + another
	case "rate_limited":
		return "wait for the limit of this key or of its tenant, or " + another
	case "log_not_storing", "log_full":
		return partAdvice["log"]
	case "verifier_stale", "unavailable":
		return "see the line \"ready\" of this role: it cannot check keys now"
	}
	return another
}

// copyAdvice says what to do about a record that cannot be read. Only a ClickHouse
// that cannot be reached is to be started.
func copyAdvice(p *client.Problem) string {
	const meanwhile = "; nothing is lost meanwhile, and the copy catches up by itself"
	switch {
	case p.Code == "copy_stopped" || p.Code == "wrong_copy":
		return "read in the auditor's log what it found; keys are verified and changed without the copy"
	case strings.Contains(p.Detail, "cannot be reached"), strings.Contains(p.Detail, "has not answered"):
		return "start ClickHouse, or correct KEYTRAIL_CLICKHOUSE of the auditor" + meanwhile
	}
	return "ClickHouse runs, and gives this reason: remove it there" + meanwhile
}

// engine says whether the local engine of `keytrail up` is available here.
func (d *doctor) engine() {
	if os.Getenv("KEYTRAIL_CLICKHOUSE") != "" {
		return // a server is meant
	}
	if lib, err := engine.Locate(engine.Config{}); err != nil {
		d.note("local engine", err.Error())
	} else {
		d.note("local engine", "available at "+lib)
	}
}

// logger is that of the libraries beneath a deep check.
func (d *doctor) logger() *slog.Logger {
	l, err := d.app.logger(slog.LevelWarn)
	if err != nil {
		d.fail("--log-level", err, "")
		return slog.New(slog.DiscardHandler)
	}
	return l
}
