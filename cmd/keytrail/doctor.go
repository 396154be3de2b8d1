package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/audit"
	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/cmd/internal/client"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/schemas/api"
)

func (a *app) doctorCmd() *cobra.Command {
	var probe bool
	var dsn string
	var deep bool
	nf := natsFlags{user: "ctrl"}
	c := &cobra.Command{Use: "doctor", Short: "Check a deployment, and say what to do", Args: none,
		Long: `Check what can be checked from here: whether the doors answer, whether the operator
key is good, whether clocks agree, whether ClickHouse can be had. With --deep it also connects to NATS,
reads the whole log and checks every chain; with --clickhouse as well, it compares
the copy with the log, row by row and cell by cell.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if probe {
				return a.probe(c.Context())
			}
			d := &doctor{app: a}
			if !d.doors(c.Context()) {
				d.engine() // the record is not served: can a store be had here at all?
			}
			if deep {
				d.record(c.Context(), &nf, dsn)
			}
			return d.report()
		}}
	c.Flags().BoolVar(&probe, "probe", false, "only ask /readyz of this host's KEYTRAIL_LISTEN; for container health checks")
	c.Flags().BoolVar(&deep, "deep", false, "read and check the whole log, over NATS")
	nf.register(c)
	c.Flags().StringVar(&dsn, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), "DSN of the auditor's ClickHouse: compare the copy with the log (with --deep)")
	hush(c.Flags(), "clickhouse", "")
	return c
}

// probe asks this host's own door.
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
	what, found, advice string
	bad                 bool
}

type doctor struct {
	app      *app
	findings []finding
}

func (d *doctor) ok(what, found string) {
	d.findings = append(d.findings, finding{what: what, found: found})
}

func (d *doctor) fail(what string, err error, advice string) {
	found := err.Error()
	if p := new(api.Problem); errors.As(err, &p) {
		found = p.Detail
	}
	d.findings = append(d.findings, finding{what, found, advice, true})
}

func (d *doctor) report() error {
	w := tabwriter.NewWriter(d.app.out, 0, 4, 2, ' ', 0)
	bad := 0
	for _, f := range d.findings {
		mark := "ok"
		if f.bad {
			mark = "FAIL"
			bad++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", mark, f.what, f.found)
		if f.advice != "" {
			fmt.Fprintf(w, "\t\t  do: %s\n", f.advice)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d checks failed", bad, len(d.findings))
	}
	return nil
}

// doors asks every door, and reports whether the record is served.
func (d *doctor) doors(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := d.app.client("")
	if err != nil {
		d.fail("operator key", err, "name the file with --key-file, or set KEYTRAIL_ROOT_KEY")
		return false
	}
	sent := time.Now()
	resp, err := c.Send(ctx, http.MethodGet, "/healthz", nil, nil, nil)
	if err != nil {
		d.fail("control door", err, "start it, or name it with --url")
		return false
	}
	resp.Body.Close()
	d.ok("control door", c.Base)
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		// The header has whole seconds.
		if skew := at.Sub(sent.Truncate(time.Second)); skew.Abs() > 2*time.Second {
			d.fail("clocks", fmt.Errorf("the server's clock differs by %s", skew), "synchronise the clocks; expiry is judged by the verifier's own")
		} else {
			d.ok("clocks", "within two seconds")
		}
	}
	if err := c.Do(ctx, http.MethodGet, "/readyz", nil, nil, nil, nil); err != nil {
		d.fail("ready", err, "look at the role's own log; a verifier is ready once it has applied the log and hears its heartbeat")
	} else {
		d.ok("ready", "the view is fresh")
	}
	if err := c.Do(ctx, http.MethodGet, "/v1/keyspaces", nil, nil, nil, nil); err != nil {
		d.fail("operator key", err, "set KEYTRAIL_ROOT_KEY, or --key-file; `keytrail up` keeps it in <dir>/root.key")
	} else {
		d.ok("operator key", "accepted")
	}
	ac := *c
	ac.Base = env("KEYTRAIL_AUDIT_URL", d.app.url)
	if err := ac.Do(ctx, http.MethodGet, "/v1/audit/events?limit=1", nil, nil, nil, nil); err != nil {
		d.fail("audit door", err, "is ClickHouse up? Nothing is lost while it is not; name the auditor with KEYTRAIL_AUDIT_URL")
		return false
	}
	d.ok("audit door", ac.Base)
	return true
}

func (d *doctor) engine() {
	if os.Getenv("KEYTRAIL_CLICKHOUSE") != "" {
		d.ok("ClickHouse", "KEYTRAIL_CLICKHOUSE names a server")
		return
	}
	if lib, err := engine.Locate(engine.Config{}); err != nil {
		d.fail("ClickHouse", err, "")
	} else {
		d.ok("ClickHouse", "local engine "+lib)
	}
}

// servers asks the log's servers whether they fsync before they acknowledge, if
// the password of the user who may ask is here.
func (d *doctor) servers(ctx context.Context, nf natsFlags, logger *slog.Logger) {
	nf.user = "sys"
	if pw, err := password(nf.user); err != nil || pw == "" {
		d.ok("fsync", "not asked: KEYTRAIL_SYS_PASSWORD is not set here")
		return
	}
	nc, err := nf.connect("keytrail doctor", logger)
	if err != nil {
		d.fail("fsync", err, "is the password of the sys user right?")
		return
	}
	defer nc.Close()
	if err := eventlog.CheckServers(ctx, nc, 1); err != nil {
		d.fail("fsync", err, "set sync_interval: always on every server of the log, as deploy/nats/nats.conf does")
		return
	}
	d.ok("fsync", "every server syncs before it acknowledges")
}

func (d *doctor) record(ctx context.Context, nf *natsFlags, dsn string) {
	logger, err := d.app.logger(slog.LevelWarn)
	if err != nil {
		d.fail("log", err, "")
		return
	}
	nc, err := nf.connect("keytrail doctor", logger)
	if err != nil {
		d.fail("log", err, "is NATS up, and are user and password right?")
		return
	}
	defer nc.Close()
	log, err := eventlog.Open(ctx, nc, eventlog.Options{})
	if err != nil {
		d.fail("log", err, "")
		return
	}
	var total events.Seq
	if err := log.Check(ctx, func(_, n events.Seq) { total = n }); err != nil {
		d.fail("log", err, "")
		return
	}
	d.ok("log", fmt.Sprintf("%d events, no gap, every chain whole", total))
	d.servers(ctx, *nf, logger)
	if dsn == "" {
		return
	}
	store, err := audit.Open(ctx, audit.StoreConfig{DSN: dsn, Logger: logger})
	if err != nil {
		d.fail("copy", err, "")
		return
	}
	defer store.Close()
	if err := copied(ctx, store, log, total); err != nil {
		d.fail("copy", err, "is the auditor running, and is this its database? What follows compares only what is there")
	}
	found, err := audit.Reconcile(ctx, store, log, log)
	if err != nil {
		d.fail("copy", err, "")
		return
	}
	for _, m := range found.Mismatches {
		d.fail("copy", errors.New(m.String()), "the log wins: rebuild the copy in a fresh database")
	}
	if len(found.Mismatches) == 0 {
		d.ok("copy", found.String())
	}
}

// copied waits a little until the copy holds the log's events up to last and the
// uses that are there now, and says how far it is when it does not.
func copied(ctx context.Context, store *audit.Store, log *eventlog.Log, last events.Seq) error {
	lastUse, err := log.LastUse(ctx)
	if err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		mark, err := store.Watermark(ctx)
		if err != nil || mark.EventsSeq >= last && mark.UsesSeq >= lastUse {
			return err
		}
		if tries == 50 {
			return fmt.Errorf("%s has events up to %d of %d and messages of uses up to %d of %d, and does not catch up", store, mark.EventsSeq, last, mark.UsesSeq, lastUse)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
