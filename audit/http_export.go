package audit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

const (
	// maxExports is how many exports run at once, and maxExportsOfOne how many of
	// one caller. Each holds a connection for as long as its reader takes, and the
	// writer and all questions share the pool.
	maxExports      = 4
	maxExportsOfOne = 2
	// A reader must take exportRate bytes a second on average, beside exportGrace. A
	// slower reader keeps others from a slot, and is cut off.
	exportRate  = 16 << 10
	exportGrace = 30 * time.Second
)

// exportSlots counts the exports that run. The zero value is ready.
type exportSlots struct {
	mu  sync.Mutex
	all int
	of  map[string]int // by caller
}

// take takes a slot for the caller; release gives it back.
func (s *exportSlots) take(caller string) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.of[caller] >= maxExportsOfOne:
		p := api.Errorf(http.StatusTooManyRequests, "too_many_exports", "%d exports of your own key are running, which is as many as may; nothing was read", maxExportsOfOne)
		p.RetryAfter = 10
		return nil, p
	case s.all >= maxExports:
		return nil, api.Unavailable(10, "%d exports are running, which is as many as may; nothing was read", maxExports)
	}
	if s.of == nil {
		s.of = map[string]int{}
	}
	s.all++
	s.of[caller]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.of[caller]--; s.of[caller] == 0 {
			delete(s.of, caller)
		}
	}, nil
}

// exportRequest is the body of POST /v1/audit/exports.
type exportRequest struct {
	Kind   Kind              `json:"kind"`
	Format Format            `json:"format"`
	Filter map[string]string `json:"filter"`
}

// The headers of an export. The first four come first; the rest are trailers,
// which a stream that broke off does not have, and which a proxy may drop: the
// same is in the manifest, by the export's id.
const (
	headerExport = "Keytrail-Export-Id"
	headerTotal  = "Keytrail-Total-Rows"
	headerGaps   = "Keytrail-Gaps" // JSON; only when there are any
	headerNote   = "Keytrail-Note" // one for each note
	trailerRows  = "Keytrail-Rows"
	trailerFirst = "Keytrail-First-Seq"
	trailerLast  = "Keytrail-Last-Seq"
	trailerSum   = "Keytrail-Digest" // SHA-256 of the body, 64 hexadecimal digits
)

// export streams a copy. That it begins is on the record before a row is read, and
// how it ended before the last byte of the answer.
func (d *Handler) export(w http.ResponseWriter, r *api.Request) error {
	who := &r.Who
	var req exportRequest
	if err := r.Decode(&req); err != nil {
		return err
	}
	var faults input.FieldErrors
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
	release, err := d.exports.take(who.Actor.ID)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(r.Context(), askLimit)
	defer cancel()
	id, _, err := d.cfg.Recorder.record(ctx, who, "", &events.AuditExported{Kind: string(req.Kind), Format: string(req.Format), Filter: f.given})
	if err != nil {
		return err
	}
	end := events.AuditExportEnded{Export: id}
	m, err := d.stream(ctx, w, r, &req, &f, &end)
	end.Complete, end.Rows, end.First, end.Last = err == nil, m.Rows, m.First, m.Last
	if end.Complete {
		err = end.Digest.UnmarshalText([]byte(m.Digest))
	}
	d.ended(r, &end, err)
	if err == nil { // its last bytes have not been written yet
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(exportGrace))
	}
	if broken := (*brokenOff)(nil); errors.As(err, &broken) {
		// The answer has begun: cut the connection, so that nobody takes what came
		// for the whole.
		d.cfg.Logger.WarnContext(ctx, "export broke off", "kind", req.Kind, "export", id, "request_id", api.RequestID(r.Request), "err", broken.error)
		panic(http.ErrAbortHandler)
	}
	return err
}

// stream writes the answer, up to its trailers. What it sets of end is known
// before the first row.
func (d *Handler) stream(ctx context.Context, w http.ResponseWriter, r *api.Request, req *exportRequest, f *Filter, end *events.AuditExportEnded) (m Manifest, err error) {
	if err := d.cfg.Store.CheckLog(ctx, d.cfg.Log.ID()); err != nil {
		return m, err
	}
	e, err := d.cfg.Store.NewExport(ctx, ScopeOf(&r.Who), f, req.Format, d.cfg.Log.ID())
	if err != nil {
		return m, err
	}
	end.Gaps = e.Gaps
	h := w.Header()
	h.Set("Content-Type", map[Format]string{CSV: "text/csv; charset=utf-8; header=present", JSONL: "application/jsonl"}[req.Format])
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="keytrail-%s-%d.%s"`, req.Kind, e.bound, req.Format))
	h.Set("Cache-Control", "no-store")
	h.Set(headerExport, end.Export.String())
	h.Set(headerTotal, strconv.FormatUint(e.Total, 10))
	if e.Gaps != nil {
		b, err := json.Marshal(e.Gaps, json.Deterministic(true))
		if err != nil {
			return m, err
		}
		h.Set(headerGaps, string(b))
	}
	for _, note := range e.Notes {
		h.Add(headerNote, note)
	}
	h.Set("Trailer", trailerRows+", "+trailerFirst+", "+trailerLast+", "+trailerSum)
	w.WriteHeader(http.StatusOK)
	out := &patientWriter{w: w, deadline: http.NewResponseController(w).SetWriteDeadline, now: time.Now}
	m, err = whileAllowed(r.Context(), r.Recheck, out, func(ctx context.Context) (Manifest, error) { return e.WriteTo(ctx, out) })
	if err != nil {
		return m, &brokenOff{fmt.Errorf("after %d of %d rows: %w", m.Rows, e.Total, err)}
	}
	h.Set(trailerRows, strconv.FormatUint(m.Rows, 10))
	h.Set(trailerFirst, strconv.FormatUint(uint64(m.First), 10))
	h.Set(trailerLast, strconv.FormatUint(uint64(m.Last), 10))
	h.Set(trailerSum, m.Digest)
	return m, nil
}

// brokenOff is an export whose answer had begun.
type brokenOff struct{ error }

func (b *brokenOff) Unwrap() error { return b.error }

// endBudget is how long the end of an export may take to get on the record: longer
// than the log's servers take to choose a new leader. Its reader may be gone already.
const endBudget = time.Minute

// ended puts the end of an export on the record, with why it broke off.
func (d *Handler) ended(r *api.Request, end *events.AuditExportEnded, broke error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), endBudget)
	defer cancel()
	if err := d.cfg.Recorder.insist(ctx, &r.Who, whyBroken(broke), end); err != nil {
		d.cfg.Logger.ErrorContext(ctx, "the end of an export is not on the record", "export", end.Export, "complete", end.Complete, "request_id", api.RequestID(r.Request), "err", err)
	}
}

// ManifestView is what the record has about one export.
type ManifestView struct {
	ID        events.EventID    `json:"id"`
	Kind      string            `json:"kind"`
	Format    string            `json:"format"`
	Filter    map[string]string `json:"filter"`
	State     string            `json:"state"` // running, complete or broken_off
	StartedAt events.Time       `json:"started_at"`
	EndedAt   events.Time       `json:"ended_at,omitzero"`
	Rows      uint64            `json:"rows"`
	First     events.Seq        `json:"first_seq,omitzero"`
	Last      events.Seq        `json:"last_seq,omitzero"`
	Digest    events.Hash       `json:"digest,omitzero"`
	Gaps      *events.Gaps      `json:"gaps,omitzero"`
	Reason    string            `json:"reason,omitzero"` // why it broke off
}

// manifest answers what the trail has of an export of the caller's own: its
// beginning, and its end once that is there. The copy may lag a second behind.
func (d *Handler) manifest(w http.ResponseWriter, r *api.Request) error {
	missing := api.Errorf(http.StatusNotFound, "not_found", "there is no export of your own key with this id; one that has just begun takes a second to show")
	id, err := events.ParseEventID(r.PathValue("id"))
	if err != nil {
		return missing
	}
	ctx, cancel := context.WithTimeout(r.Context(), askLimit)
	defer cancel()
	if err := d.cfg.Store.CheckLog(ctx, d.cfg.Log.ID()); err != nil {
		return err
	}
	m, err := d.cfg.Store.manifest(ctx, r.Who.Actor, id)
	if err != nil {
		return err
	}
	if m == nil {
		return missing
	}
	api.WriteJSON(w, r.Request, http.StatusOK, api.One{Data: m})
	return nil
}

// manifest returns what the trail has of an export of the reader, nil for nothing.
// A reader may see its own history whatever its key is restricted to.
func (s *Store) manifest(ctx context.Context, reader events.Actor, id events.EventID) (m *ManifestView, err error) {
	a := events.ReaderAggregate(reader)
	q := ask("events", everything).and("stream = 'reads' AND keyspace = {keyspace:String} AND kind = 'reader' AND aggregate_id = {reader:String}", "keyspace", string(a.Keyspace), "reader", a.ID).
		and("(type = 'audit.exported' AND id = {id:String} OR type = 'audit.export_ended' AND JSONExtractString(data, 'export') = {id:String})", "id", id.String())
	err = s.each(ctx, q.selects(eventColumns, " ORDER BY seq"), q.args, func(rows driver.Rows) error {
		r, err := scanEvent(rows)
		if err != nil {
			return err
		}
		switch d := r.Data.(type) {
		case *events.AuditExported:
			m = &ManifestView{ID: id, Kind: d.Kind, Format: d.Format, Filter: d.Filter, State: "running", StartedAt: r.Time}
		case *events.AuditExportEnded:
			if m == nil {
				break
			}
			m.State, m.EndedAt, m.Rows, m.First, m.Last, m.Digest, m.Gaps, m.Reason = "broken_off", r.Time, d.Rows, d.First, d.Last, d.Digest, d.Gaps, r.Reason
			if d.Complete {
				m.State = "complete"
			}
		}
		return nil
	})
	return m, err
}
