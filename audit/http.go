package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

const (
	pageDefault = 50
	pageMax     = 100
	// askLimit is how long one question may take; an export may take any time.
	askLimit = 30 * time.Second
	// exportStall is how long a reader of an export may take no byte.
	exportStall = time.Minute
	// maxExports is how many exports run at once. Each holds a connection for as
	// long as its reader likes, and the writer and all questions share the pool.
	maxExports = 4
)

// DoorConfig says what the audit door stands on.
type DoorConfig struct {
	Store *Store
	Log   events.LastOfLog // where reading is written down
	Now   func() time.Time // default time.Now
	Node  events.NodeID    // this process, as the source of what it writes down
	// Recorder is shared with other doors of the process. Default: one of its own.
	Recorder *Recorder
	// Logger receives exports that broke off. Default: nobody is told.
	Logger *slog.Logger
}

// Door answers questions about the record over HTTP.
type Door struct {
	cfg      DoorConfig
	recorder *Recorder
	exports  chan struct{} // holds a token for each export that runs
}

// NewDoor makes a door.
func NewDoor(cfg DoorConfig) *Door {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Recorder == nil {
		cfg.Recorder = NewRecorder(cfg.Log, "/keytrail/auditor/"+string(cfg.Node), cfg.Now)
	}
	return &Door{cfg: cfg, exports: make(chan struct{}, maxExports), recorder: cfg.Recorder}
}

// Routes adds the door's routes: the scope audit:read opens the questions,
// audit:export the exports.
func (d *Door) Routes(mux *http.ServeMux, auth api.Authenticator) {
	handle := func(pattern, scope string, f func(http.ResponseWriter, *http.Request, *events.Principal) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			who, err := api.Authorize(auth, r, scope)
			if err == nil {
				err = f(w, r, &who)
			}
			if err != nil {
				api.Write(w, r, d.problem(err))
			}
		})
	}
	handle("GET /v1/audit/events", events.ScopeAuditRead, d.events)
	handle("GET /v1/audit/uses", events.ScopeAuditRead, d.uses)
	handle("GET /v1/audit/usage", events.ScopeAuditRead, d.usage)
	handle("POST /v1/audit/exports", events.ScopeAuditExport, d.export)
}

// problem turns the store's errors into answers; the rest goes through.
func (d *Door) problem(err error) error {
	var stopped *StopError
	switch {
	case errors.As(err, &stopped):
		return api.Errorf(http.StatusServiceUnavailable, "wrong_copy", "%s", stopped.Reason)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Unavailable(5, "the question took longer than %v; narrow it by tenant, key or time", askLimit)
	case errors.Is(err, ErrUnavailable):
		return api.Unavailable(2, "ClickHouse cannot be reached; nothing is lost, the record catches up when it is back")
	}
	return err
}

func (d *Door) events(w http.ResponseWriter, r *http.Request, who *events.Principal) error {
	return d.page(w, r, who, KindEvents, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		rows, next, err := d.cfg.Store.Events(ctx, scope, f, p)
		views := make([]api.EventView, len(rows))
		for i := range rows {
			views[i] = api.ViewEvent(&rows[i])
		}
		out.Data = views
		return next, err
	})
}

func (d *Door) uses(w http.ResponseWriter, r *http.Request, who *events.Principal) error {
	return d.page(w, r, who, KindUses, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		rows, next, err := d.cfg.Store.Uses(ctx, scope, f, p)
		views := make([]UseView, len(rows))
		for i := range rows {
			views[i] = viewUse(&rows[i], d.cfg.Log.ID())
		}
		out.Data = views
		return next, err
	})
}

func (d *Door) usage(w http.ResponseWriter, r *http.Request, who *events.Principal) error {
	return d.page(w, r, who, KindUsage, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		cells, next, err := d.cfg.Store.Usage(ctx, scope, f, p)
		views := make([]UsageView, len(cells))
		for i, c := range cells {
			views[i] = UsageView{At: c.At, Allowed: c.Reason.Allowed(), Reason: c.Reason, Count: c.Count}
		}
		out.Data = views
		if err == nil && !f.Key.IsZero() {
			var used map[events.KeyID]events.Time
			used, err = d.cfg.Store.lastUsed(ctx, scope, []string{f.Key.String()})
			out.LastUsedAt = used[f.Key]
		}
		return next, err
	})
}

// page is what the three questions have in common.
func (d *Door) page(w http.ResponseWriter, r *http.Request, who *events.Principal, kind Kind,
	read func(context.Context, Scope, *Filter, Page, *list) (*Cursor, error)) error {
	scope := ScopeOf(who)
	f, p, err := parsePage(kind, scope, r.URL.RawQuery)
	if err != nil {
		return err
	}
	if err := reach(who, &f); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), askLimit)
	defer cancel()
	if err := d.recorder.Record(ctx, who, &events.AuditQueried{Kind: string(kind), Filter: f.given}); err != nil {
		return err
	}
	if err := d.cfg.Store.CheckLog(ctx, d.cfg.Log.ID()); err != nil {
		return err
	}
	var out list
	// Before the rows: what the answer shows may be newer than the mark, never older.
	if out.Watermark, err = d.cfg.Store.Watermark(ctx); err != nil {
		return err
	}
	next, err := read(ctx, scope, &f, p, &out)
	if err != nil {
		return err
	}
	if next != nil {
		token := next.encode(scope, &f)
		out.NextCursor = &token
	}
	api.WriteJSON(w, r, http.StatusOK, out)
	return nil
}

// parsePage reads the query string: filters, limit and cursor, each once.
func parsePage(kind Kind, scope Scope, raw string) (Filter, Page, error) {
	p := Page{Limit: pageDefault}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return Filter{}, p, api.Errorf(http.StatusBadRequest, "bad_query", "the query string cannot be read")
	}
	var faults events.FieldErrors
	given := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if len(values[name]) > 1 {
			faults.Add(clip(name), "repeated", "want it once")
		}
		given[name] = values[name][0]
	}
	limit, hasLimit := given["limit"]
	cursor, hasCursor := given["cursor"]
	delete(given, "limit")
	delete(given, "cursor")
	f, more := ParseFilter(kind, given)
	faults = append(faults, more...)
	if hasLimit {
		if p.Limit, err = strconv.Atoi(limit); err != nil || p.Limit < 1 || p.Limit > pageMax {
			faults.Add("limit", "invalid", fmt.Sprintf("want 1 to %d", pageMax))
		}
	}
	if hasCursor {
		if p.After, err = parseCursor(cursor, scope, &f); err != nil {
			faults.Add("cursor", "invalid", err.Error())
		}
	}
	return f, p, faults.OrNil()
}

// reach refuses a question about what the principal cannot see, where an empty
// answer would look like "nothing happened".
func reach(who *events.Principal, f *Filter) error {
	out := func(field, value string) error {
		return api.Errorf(http.StatusForbidden, "beyond_own_power", "%s %q is out of the reach of your own key", field, value)
	}
	if f.Keyspace != "" && len(who.Keyspaces) > 0 && !slices.Contains(who.Keyspaces, f.Keyspace) {
		return out("keyspace", string(f.Keyspace))
	}
	if f.Tenant != "" && len(who.Tenants) > 0 && !slices.Contains(who.Tenants, f.Tenant) {
		return out("tenant", string(f.Tenant))
	}
	return nil
}

// exportRequest is the body of POST /v1/audit/exports.
type exportRequest struct {
	Kind   Kind              `json:"kind"`
	Format Format            `json:"format"`
	Filter map[string]string `json:"filter"`
}

// The headers of an export. Total-Rows comes first, for the progress; the rest
// are trailers, which a stream that broke off does not have.
const (
	headerTotal  = "Keytrail-Total-Rows"
	trailerRows  = "Keytrail-Rows"
	trailerFirst = "Keytrail-First-Seq"
	trailerLast  = "Keytrail-Last-Seq"
	trailerSum   = "Keytrail-Digest" // SHA-256 of the body, 64 hexadecimal digits
)

func (d *Door) export(w http.ResponseWriter, r *http.Request, who *events.Principal) error {
	var req exportRequest
	if err := api.Decode(r, &req); err != nil {
		return err
	}
	var faults events.FieldErrors
	if req.Kind != KindEvents && req.Kind != KindUses {
		faults.Add("kind", "invalid", "want events or uses")
	}
	if req.Format != CSV && req.Format != JSONL {
		faults.Add("format", "invalid", "want csv or jsonl")
	}
	if len(faults) > 0 {
		return faults
	}
	f, more := ParseFilter(req.Kind, req.Filter)
	faults.Merge("filter", more)
	if len(faults) > 0 {
		return faults
	}
	if err := reach(who, &f); err != nil {
		return err
	}
	select {
	case d.exports <- struct{}{}:
		defer func() { <-d.exports }()
	default:
		return api.Unavailable(10, "%d exports are running, which is as many as may; nothing was read", maxExports)
	}
	ctx, cancel := context.WithTimeout(r.Context(), askLimit)
	defer cancel()
	if err := d.recorder.Record(ctx, who, &events.AuditExported{Kind: string(req.Kind), Format: string(req.Format), Filter: f.given}); err != nil {
		return err
	}
	if err := d.cfg.Store.CheckLog(ctx, d.cfg.Log.ID()); err != nil {
		return err
	}
	e, err := d.cfg.Store.NewExport(ctx, ScopeOf(who), &f, req.Format, d.cfg.Log.ID())
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", map[Format]string{CSV: "text/csv; charset=utf-8; header=present", JSONL: "application/jsonl"}[req.Format])
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="keytrail-%s-%d.%s"`, req.Kind, e.bound, req.Format))
	h.Set("Cache-Control", "no-store")
	h.Set(headerTotal, strconv.FormatUint(e.Total, 10))
	h.Set("Trailer", trailerRows+", "+trailerFirst+", "+trailerLast+", "+trailerSum)
	w.WriteHeader(http.StatusOK)
	m, err := e.WriteTo(r.Context(), &patientWriter{w: w, c: http.NewResponseController(w)})
	if err != nil {
		// The answer has begun: break the connection off, so that nobody takes
		// what came for the whole.
		d.cfg.Logger.WarnContext(ctx, "export broke off", "kind", req.Kind, "rows", m.Rows, "of", e.Total, "request_id", api.RequestID(r), "err", err)
		panic(http.ErrAbortHandler)
	}
	h.Set(trailerRows, strconv.FormatUint(m.Rows, 10))
	h.Set(trailerFirst, strconv.FormatUint(uint64(m.First), 10))
	h.Set(trailerLast, strconv.FormatUint(uint64(m.Last), 10))
	h.Set(trailerSum, m.Digest)
	return nil
}

// patientWriter lets an export run past the server's write timeout for as long as
// its reader takes bytes.
type patientWriter struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func (p *patientWriter) Write(b []byte) (int, error) {
	if err := p.c.SetWriteDeadline(time.Now().Add(exportStall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return p.w.Write(b)
}
