package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

const (
	pageDefault = 50
	pageMax     = 100
	// askLimit is how long one question may take; an export may take any time.
	askLimit = 30 * time.Second
)

// HandlerConfig says what the audit endpoints stand on. All but Logger is required.
type HandlerConfig struct {
	Store    *Store
	Log      events.Log // the log that Store must be a copy of
	Recorder *Recorder  // puts each reading on the read log
	// Logger receives exports that broke off. Default: nobody is told.
	Logger *slog.Logger
}

// Handler answers questions about the record over HTTP.
type Handler struct {
	cfg     HandlerConfig
	exports exportSlots
}

// NewHandler returns a handler that answers from cfg.Store.
func NewHandler(cfg HandlerConfig) *Handler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Handler{cfg: cfg}
}

// Routes adds the handler's routes: the scope audit:read opens the questions,
// audit:export the exports.
func (d *Handler) Routes(mux *http.ServeMux, auth api.Authenticator) {
	routes := &api.Routes{Mux: mux, Auth: auth}
	handle := func(e api.Endpoint, serve func(http.ResponseWriter, *api.Request) error) {
		routes.Handle(e, func(w http.ResponseWriter, r *api.Request) error { return d.problem(serve(w, r)) })
	}
	question := func(kind Kind, serve func(http.ResponseWriter, *api.Request) error) {
		handle(api.Endpoint{
			Pattern: "GET /v1/audit/" + string(kind), Scope: events.ScopeAuditRead,
			Query: strings.Join(fields[kind], " ") + " cursor limit",
		}, serve)
	}
	question(KindEvents, d.events)
	question(KindUses, d.uses)
	question(KindUsage, d.usage)
	question(KindBlocks, d.blocks)
	handle(api.Endpoint{Pattern: "POST /v1/audit/exports", Scope: events.ScopeAuditExport, Body: api.RequiredBody}, d.export)
	handle(api.Endpoint{Pattern: "GET /v1/audit/exports/{id}", Scope: events.ScopeAuditExport}, d.manifest)
}

// problem turns the store's errors into answers; the rest goes through.
func (d *Handler) problem(err error) error {
	var stopped *StopError
	var fault *Fault
	switch {
	case errors.As(err, &stopped):
		return api.Errorf(http.StatusServiceUnavailable, "wrong_copy", "%s", stopped.Reason)
	case errors.Is(err, context.DeadlineExceeded):
		return api.Unavailable(5, "the question took longer than %v; narrow it by tenant, key or time", askLimit)
	case errors.As(err, &fault):
		return fault.Problem()
	}
	return err
}

func (d *Handler) events(w http.ResponseWriter, r *api.Request) error {
	return d.page(w, r, KindEvents, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		rows, next, err := d.cfg.Store.Events(ctx, scope, f, p)
		if err != nil {
			return nil, err
		}
		names, err := d.cfg.Store.names(ctx, scope, rows)
		views := make([]api.EventView, len(rows))
		for i := range rows {
			views[i] = api.ViewEvent(&rows[i])
			views[i].Actor.Name = names[rows[i].Actor.ID]
		}
		out.Data, out.rows = views, len(views)
		return next, err
	})
}

func (d *Handler) uses(w http.ResponseWriter, r *api.Request) error {
	return d.page(w, r, KindUses, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		rows, next, err := d.cfg.Store.Uses(ctx, scope, f, p)
		views := make([]UseView, len(rows))
		for i := range rows {
			views[i] = viewUse(&rows[i])
		}
		out.Data, out.rows = views, len(views)
		if err == nil && p.After == nil {
			err = out.note(d.cfg.Store.countedNote(ctx, scope, f))
		}
		return next, err
	})
}

func (d *Handler) blocks(w http.ResponseWriter, r *api.Request) error {
	return d.page(w, r, KindBlocks, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		rows, next, err := d.cfg.Store.Blocks(ctx, scope, f, p)
		views := make([]BlockView, len(rows))
		for i := range rows {
			views[i] = viewBlock(&rows[i])
		}
		out.Data, out.rows = views, len(views)
		return next, err
	})
}

func (d *Handler) usage(w http.ResponseWriter, r *api.Request) error {
	return d.page(w, r, KindUsage, func(ctx context.Context, scope Scope, f *Filter, p Page, out *list) (*Cursor, error) {
		cells, next, err := d.cfg.Store.Usage(ctx, scope, f, p)
		views := make([]UsageView, len(cells))
		for i, c := range cells {
			views[i] = UsageView{At: c.At, Allowed: c.Reason.Allowed(), Reason: c.Reason, Count: c.Count}
		}
		out.Data, out.rows = views, len(views)
		if err == nil && !f.Key.IsZero() {
			var used map[events.KeyID]events.Time
			used, err = d.cfg.Store.lastUsed(ctx, scope, []string{f.Key.String()})
			out.LastUsedAt = used[f.Key]
		}
		return next, err
	})
}

// page is what the questions have in common.
func (d *Handler) page(w http.ResponseWriter, r *api.Request, kind Kind,
	read func(context.Context, Scope, *Filter, Page, *list) (*Cursor, error)) error {
	who := &r.Who
	scope := ScopeOf(who)
	f, p, err := parsePage(kind, scope, r.Query)
	if err != nil {
		return err
	}
	if err := reach(who, &f); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), askLimit)
	defer cancel()
	var walk events.Seq
	if p.After != nil {
		walk = p.After.walk
	}
	if walk, err = d.cfg.Recorder.Walk(ctx, who, walk, &events.AuditQueried{Kind: string(kind), Filter: f.given}); err != nil {
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
	if kind != KindEvents {
		g, err := d.cfg.Store.Gaps(ctx, &f)
		if err != nil {
			return err
		}
		out.Gaps = &g
	}
	if p.After == nil && out.rows == 0 {
		notes, err := d.cfg.Store.Notes(ctx, scope, &f)
		if err != nil {
			return err
		}
		out.Notes = append(out.Notes, notes...)
	}
	if next != nil {
		next.walk = walk
		token := next.encode(scope, &f)
		out.NextCursor = &token
	}
	api.WriteJSON(w, r.Request, http.StatusOK, out)
	return nil
}

// parsePage reads the filters, limit and cursor of a question.
func parsePage(kind Kind, scope Scope, query api.Query) (f Filter, p Page, err error) {
	p.Limit = pageDefault
	given := map[string]string{}
	for name, v := range query.All() {
		if name != "limit" && name != "cursor" {
			given[name] = v
		}
	}
	f, faults := ParseFilter(kind, given)
	if query.Has("limit") {
		if p.Limit, err = strconv.Atoi(query.Get("limit")); err != nil || p.Limit < 1 || p.Limit > pageMax {
			faults.Add("limit", "invalid", fmt.Sprintf("want an integer from 1 to %d", pageMax))
		}
	}
	if query.Has("cursor") {
		if p.After, err = parseCursor(query.Get("cursor"), scope, &f); err != nil {
			faults.Add("cursor", "invalid", err.Error())
		}
	}
	return f, p, faults.OrNil()
}

// reach refuses a question about what the principal cannot see, where an empty
// answer would look like "nothing happened".
func reach(who *events.Principal, f *Filter) error {
	out := func(field, value string) error {
		return api.Errorf(http.StatusForbidden, "beyond_own_power", "%s %s is out of the reach of your own key", field, input.Echo(value))
	}
	if f.Keyspace != "" && !who.Enters(f.Keyspace) {
		return out("keyspace", string(f.Keyspace))
	}
	if f.Tenant != "" && len(who.Tenants) > 0 && !slices.Contains(who.Tenants, f.Tenant) {
		return out("tenant", string(f.Tenant))
	}
	if f.kind == KindBlocks && len(who.Tenants) > 0 {
		return api.Errorf(http.StatusForbidden, "beyond_own_power", "uses of unknown keys belong to no tenant, and your own key is restricted to tenants")
	}
	return nil
}
